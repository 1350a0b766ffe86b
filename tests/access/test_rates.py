"""Rates: a sender that is too fast is slowed. Nothing is dropped, and nobody else notices."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.harness import identities
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Peer, event


class Limited:
    """A server; ``slow`` is limited, ``fast`` is not."""

    def __init__(self, start_server: StartServer, folder: Path, **limits: float) -> None:
        slow, slow_stanza = identities.with_token("slow", publish=["*"], **limits)
        fast, fast_stanza = identities.with_token("fast", publish=["*"], read=["*"], may=["monitor"])
        self.slow, self.fast = identities.auth(slow), identities.auth(fast)
        path = identities.write(folder / "identities.toml", slow_stanza, fast_stanza)
        self.server: ServerProcess = start_server("--identities", str(path), "--anonymous", "none")

    def stats(self) -> dict[str, int]:
        with Peer(self.server.port) as peer:
            peer.send(self.fast + b"STATS\n")
            return peer.replies(2)[1]  # type: ignore[no-any-return]


def send_for_ever(peer: Peer, prefix: str) -> threading.Thread:
    """Send events as fast as they are taken, until the peer is closed."""

    def send() -> None:
        number = 0
        try:
            while True:
                peer.send(b"".join(event(f"{prefix}-{number + i}") for i in range(100)))
                number += 100
        except OSError:
            pass

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def rate_of(limited: Limited, seconds: float) -> float:
    """Events stored a second, counted from one moment at which some were stored to another."""
    seen: list[tuple[float, int]] = []
    with Peer(limited.server.port) as peer:
        peer.ask(limited.fast)
        start = time.monotonic()
        while (now := time.monotonic()) - start < seconds:
            stored = peer.ask(b"STATS\n")["unique_processed"]
            if not seen or stored != seen[-1][1]:
                seen.append((now, stored))
    (first_at, first), *_, (last_at, last) = seen[1:]
    return (last - first) / (last_at - first_at)


@pytest.mark.parametrize(("connections", "events_per_s"), [(1, 1000), (3, 4000)])
def test_a_sender_at_full_speed_is_slowed_to_its_rate(
    start_server: StartServer, tmp_path: Path, connections: int, events_per_s: int
) -> None:
    limited = Limited(start_server, tmp_path, events_per_s=events_per_s)
    peers = [Peer(limited.server.port) for _ in range(connections)]
    for number, peer in enumerate(peers):
        peer.ask(limited.slow)
        send_for_ever(peer, f"{number}")
        threading.Thread(target=_drain, args=(peer,), daemon=True).start()
    wait_until(lambda: limited.stats()["unique_processed"] > 2 * events_per_s)
    rate = rate_of(limited, 15)
    for peer in peers:
        peer.reset()

    assert 0.95 * events_per_s <= rate <= 1.05 * events_per_s
    assert limited.stats()["rejected"] == limited.stats()["errors"] == 0


def _drain(peer: Peer) -> None:
    try:
        while peer.raw_line():
            pass
    except (OSError, ValueError):
        pass


def test_bytes_are_limited_too(start_server: StartServer, tmp_path: Path) -> None:
    limited = Limited(start_server, tmp_path, bytes_per_s=1_000_000)
    line = event("e", payload='{"x":"' + "x" * 100_000 + '"}')
    with Peer(limited.server.port) as peer:
        peer.ask(limited.slow)
        started = time.monotonic()
        peer.send(line * 40)
        assert {reply["status"] for reply in peer.replies(40)} == {"stored", "duplicate"}
        took_s = time.monotonic() - started

    assert took_s >= 4 - 0.5 - 0.5, "4 MB, less the burst and the last read"


@pytest.mark.parametrize("line", [b"PING\n", b"no event\n", event("e", "db")])
def test_lines_that_are_no_events_count_too(start_server: StartServer, tmp_path: Path, line: bytes) -> None:
    limited = Limited(start_server, tmp_path, events_per_s=100)
    with Peer(limited.server.port) as peer:
        peer.ask(limited.slow)
        started = time.monotonic()
        peer.send(line * 700)
        peer.replies(700)
        took_s = time.monotonic() - started

    assert took_s >= 1.5, "all but the last turn"


def test_others_do_not_notice_a_sender_that_is_slowed(start_server: StartServer, tmp_path: Path) -> None:
    limited = Limited(start_server, tmp_path, events_per_s=10)
    with Peer(limited.server.port) as slow, Peer(limited.server.port) as fast:
        slow.ask(limited.slow)
        fast.ask(limited.fast)
        slow.send(b"".join(event(f"s{number}") for number in range(2000)))
        started = time.monotonic()
        for number in range(200):
            assert fast.ask(event(f"f{number}"))["status"] == "stored"
        assert time.monotonic() - started < 20
        assert fast.ask(b"STATS\n")["unique_processed"] < 1500


@pytest.mark.parametrize("port", ["acked", "silent"])
def test_a_stop_does_not_wait_for_rates(start_server: StartServer, tmp_path: Path, port: str) -> None:
    limited = Limited(start_server, tmp_path, events_per_s=1)
    server = limited.server
    with Peer(server.port if port == "acked" else server.silent_port) as peer:
        peer.send(limited.slow + b"".join(event(f"e{number}") for number in range(1500)))
        wait_until(lambda: limited.stats()["received"] >= 500)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 20
        if port == "acked":
            said = [reply["status"] for reply in peer.rest()]
            acked = said.count("stored")
            assert said == ["ok"] + ["stored"] * acked + ["error"] * (1500 - acked)
        else:
            acked = 1500
    server.start()
    assert limited.stats()["stored_total"] == acked
