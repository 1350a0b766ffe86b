"""Lines and questions that take as much work as their bytes allow: other clients hardly notice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.harness.background import in_background
from tests.harness.polite_client import percentile
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess
from tests.harness.sizes import SLACK
from tests.harness.wire import Peer, event, exchange

LINES = 20
MIB = (1 << 20) - 200

PING_BAR_S = 0.15
"""The longest that another client's PING may take, at the 99th percentile, on a quiet machine."""

EVENTS_BAR_S = 0.3
"""The longest that a small answer may take, next to 16 greedy readers."""


def filled(payload: str, piece: str, end: str) -> Callable[[int], bytes]:
    """An event of one MiB: ``payload`` begins it, ``piece`` is repeated, ``end`` closes it."""
    count = (MIB - len(payload) - len(end)) // len(piece)
    return lambda number: event(f"e{number}", payload=payload + piece * count + end)


def in_batch(line: Callable[[int], bytes]) -> Callable[[int], bytes]:
    return lambda number: b"[" + line(number)[:-1] + b"]\n"


WORST = {
    "arrays": filled('{"a":[', "[],", "[]]}"),
    "objects": filled('{"a":[', "{},", "{}]}"),
    "a huge number, and many": filled('{"a":[1e999', ",1", "]}"),
    "a huge number, and arrays": filled('{"a":[1e999', ",[]", "]}"),
    "half a pair, and arrays": filled('{"a":["\\ud83d"', ",[]", "]}"),
    "half a pair, and depth": filled('{"a":["\\ud83d",' + "[" * 200 + "]" * 200, ",[]", "]}"),
    "arrays in a batch": in_batch(filled('{"a":[', "[],", "[]]}")),
    "half a pair in a batch": in_batch(filled('{"a":["\\ud83d"', ",[]", "]}")),
    "a batch of nothing": lambda number: b"[" + b",".join([b"{}"] * 10_000) + b"]\n",
    "a batch of numbers": lambda number: b"[" + b"1," * (MIB // 2) + b"1]\n",
    "escapes": filled('{"a":"', "\\n", '"}'),
    "names": lambda number: event(f"e{number}", payload="{" + ",".join(f'"{i:x}":1' for i in range(100_000)) + "}"),
}


@pytest.mark.parametrize("line", WORST.values(), ids=WORST)
def test_the_worst_lines_of_one_client_hardly_delay_another(
    server: ServerProcess, line: Callable[[int], bytes], record_figures: RecordFigures
) -> None:
    """T51: 20 lines of one MiB; PING takes at most 150 ms at the 99th percentile (on a quiet machine)."""
    stream = b"".join(line(number) for number in range(LINES))
    pings: list[float] = []
    answered = threading.Event()

    def take_replies() -> None:
        assert len(heavy.replies(LINES)) == LINES
        answered.set()

    with Peer(server.port) as heavy, Peer(server.port) as other:
        sending, taking = in_background(lambda: heavy.send(stream)), in_background(take_replies)
        while not answered.is_set():
            started = time.monotonic()
            assert other.ask(b"PING\n")["pong"]
            pings.append(time.monotonic() - started)
        sending.finish()
        taking.finish()
    p99_s = percentile(pings, 0.99)
    assert p99_s < SLACK * PING_BAR_S
    record_figures("worst lines", ping_p99_s=p99_s, pings=len(pings))


def test_greedy_readers_hardly_delay_a_small_answer(server: ServerProcess, record_figures: RecordFigures) -> None:
    """T52: 16 clients ask for 1,000 events that lie in 1,000 blocks; another client asks for one event."""
    for part in range(10):
        lines = [event(f"e{part}-{i}", "t" if i % 256 else "rare") for i in range(25 * 256)]
        assert len(exchange(server.port, b"".join(lines))) == len(lines)
    enough = threading.Event()
    answers: list[int] = []

    def ask_greedily() -> None:
        with Peer(server.port) as peer:
            while not enough.is_set():
                peer.send(b"EVENTS rare 1000\n" * 3)
                answers.append(len(peer.replies(3)))

    greedy = [in_background(ask_greedily) for _ in range(16)]
    waits: list[float] = []
    with Peer(server.port) as peer:
        for _ in range(20):
            started = time.monotonic()
            assert len(peer.ask(b"EVENTS t 1\n")["events"]) == 1
            waits.append(time.monotonic() - started)
    enough.set()
    for one in greedy:
        one.finish()
    assert answers
    assert max(waits) < SLACK * EVENTS_BAR_S
    record_figures("greedy readers", small_answer_p50_s=percentile(waits, 0.5), small_answer_max_s=max(waits))
