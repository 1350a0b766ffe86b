"""One reply to each line, in order, for any number of clients and any split of the bytes."""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.harness.background import in_background
from tests.harness.server_process import ServerProcess
from tests.harness.sizes import ACCOUNTED_LINES, STREAM_EXAMPLES
from tests.harness.wire import Peer, event, exchange


def test_replies_keep_the_order_of_lines_under_pipelining(server_on_both_loops: ServerProcess) -> None:
    """T22. Eight connections, each with a mixture of events, duplicates, bad lines, batches and commands."""
    port = server_on_both_loops.port
    failures: list[str] = []

    def client(number: int) -> None:
        lines: list[bytes] = []
        expected: list[tuple[str, object]] = []
        for i in range(ACCOUNTED_LINES):
            name = f"c{number}-{i}"
            match i % 10:
                case 3:
                    lines.append(event(f"c{number}-{i - 1}"))
                    expected.append(("duplicate", f"c{number}-{i - 1}"))
                case 5:
                    lines.append(b"%\n")
                    expected.append(("bad_line", i + 1))
                case 7:
                    lines.append(f"EVENT t c{number}-{i - 1}\n".encode())
                    expected.append(("ok", f"c{number}-{i - 1}"))
                case 9:
                    lines.append(b"[" + event(name)[:-1] + b"]\n")
                    expected.append(("batch", name))
                case _:
                    lines.append(event(name))
                    expected.append(("stored", name))
        found = []
        for reply in exchange(port, b"".join(lines)):
            match reply:
                case {"code": code, "line": line}:
                    found.append((code, line))
                case {"status": "ok", "event": {"event_id": event_id}}:
                    found.append(("ok", event_id))
                case {"status": "batch", "results": [{"event_id": event_id}]}:
                    found.append(("batch", event_id))
                case _:
                    found.append((reply["status"], reply.get("event_id")))
        if found != expected:
            wrong = next((pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]), None)
            failures.append(f"client {number}: {len(found)} replies to {len(expected)} lines, first wrong: {wrong}")

    for one in [in_background(partial(client, number)) for number in range(8)]:
        one.finish()

    assert failures == []


TOPIC = "topi_"  # as long as the topic that replaces it


def of(event_id: str, payload: str = "{}") -> bytes:
    return event(event_id, TOPIC, payload)


LINES = [
    of("a"), of("b", '{"n":1.10}'), of("a", '{"other":1}'), of("c", "1"), of("d").replace(b"\n", b"\r\n"),
    b"[" + of("e")[:-1] + b"," + of("a")[:-1] + b",{}]\n", b"\n", b"\r\n", b"\r\r\n",
    b"PING\n", b"EVENTS other\n", b"EVENT other a\n", b"nonsense\n", b"{\n", b"%\n", b"\xff\n",
    b"%" + b"x" * 299 + b"\n", b"%" + b"x" * 299 + b"\r\n", b"%" + b"x" * 300 + b"\n",
    b"%" + b"x" * 5000 + of("smuggled"), of("cut")[:-1], b"{", b"\xef\xbb\xbf",
]  # fmt: skip
TOPICS = itertools.count()


@pytest.fixture(scope="module")
def server_with_short_lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all examples, because each example has its own topic."""
    server = ServerProcess(tmp_path_factory.mktemp("server"), "--max-line-bytes", "300").start()
    yield server
    server.end()


@settings(max_examples=STREAM_EXAMPLES)
@given(st.lists(st.sampled_from(LINES), max_size=12), st.lists(st.integers(0, 10_000), max_size=6))
@example([LINES[4], LINES[-3]], [len(LINES[4]) - 1, len(LINES[4]) + 305])
def test_any_split_of_any_stream_has_the_same_replies(
    server_with_short_lines: ServerProcess, lines: list[bytes], cuts: list[int]
) -> None:
    """T23. Over a socket; test_lines.py does the same without one, on SPLIT_EXAMPLES streams.

    No command here reads that topic: a command sees events that were sent before it, and may see later ones.
    """
    port = server_with_short_lines.port
    stream = b"".join(lines)
    bounds = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    assert _replies(port, stream, bounds) == _replies(port, stream, [0, len(stream)])


def _replies(port: int, stream: bytes, bounds: list[int]) -> list[str]:
    """The server's replies to a stream that is cut at these bounds, as if nothing had been stored before."""
    topic = f"{next(TOPICS):05}"
    stream = stream.replace(TOPIC.encode(), topic.encode())
    with Peer(port) as peer:
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in itertools.pairwise(bounds):
            peer.send(stream[start:end])
        peer.half_close()
        text = peer.raw_rest().decode().replace(topic, TOPIC)
    text = re.sub(r'"events":\[\],"seq":\d+', '"events":[]', text)  # the head, which other examples may have moved
    first = re.search(r'"stored","seq":(\d+)', text)
    base = int(first[1]) if first else 0
    text = re.sub(r'"seq":(\d+)', lambda match: f'"seq":{int(match[1]) - base}', text)
    return re.sub(r'"received_at":"[^"]*"', "", text).splitlines()
