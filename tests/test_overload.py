"""Too much of everything: unread replies, useless lines, full queues. More of it is in tests/faults."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import pytest

from tests.conftest import StartServer
from tests.server_process import ServerProcess, wait_until
from tests.wire import Peer, events, exchange


def in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("unread", [b"STATS\n" * 10_000, b"%\n" * 100_000])
def test_what_a_muted_client_sends_is_still_stored(start_server: StartServer, unread: bytes) -> None:
    """Whatever kind of replies it was that it did not read, and whatever commands it still sends."""
    server = start_server("--reply-buffer-bytes", "65536")
    with Peer(server.port, receive_buffer=4096) as silent:
        sending = in_background(lambda: silent.send(unread + b"".join(events("a", 1000))))
        wait_until(lambda: server.ask("STATS")["muted"] == 1, 30)
        sending.join(30)
        silent.send(b"PING\n" * 3000 + b"".join(events("b", 1000)))
        wait_until(lambda: server.ask("STATS")["stored_total"] == 2000)
        silent.half_close()
        wait_until(lambda: server.ask("STATS")["connections"] == 1)


@pytest.mark.parametrize("line", [b"x\n", b"{}\n", b"PING " + b"'a' " * 1000 + b"\n"])
def test_a_flood_of_useless_lines_does_not_hold_up_the_others(server: ServerProcess, line: bytes) -> None:
    """The others are answered while the flood is being worked off, not after it; and it costs little memory."""
    before = server.rss_bytes
    flood = line * ((8 << 20) // len(line))
    flooders = [Peer(server.silent_port) for _ in range(4)]  # nothing holds these back but their turns
    sent = 0
    for flooder in flooders:
        flooder.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += flooder.socket.send(flood)
    for _ in range(5):
        assert server.ask("HEALTH")["health"] == "healthy"
    assert server.ask("STATS")["rejected"] < sent // len(line)
    assert server.rss_bytes - before < 100 << 20
    for flooder in flooders:
        flooder.close()


def test_the_queue_is_bounded_and_loses_nothing(start_server: StartServer) -> None:
    """Far more than the queue holds, from clients that send as fast as they can."""
    server = start_server("--queue-events", "200", "--max-batch", "50", "--queue-bytes", "100000")
    done: list[int] = []

    def flood(name: str) -> None:
        done.append(len(exchange(server.port, b"".join(events(name, 5000)))))

    threads = [in_background(lambda name=name: flood(name)) for name in ("a", "b", "c", "d")]  # type: ignore[misc]
    largest = 0
    while any(thread.is_alive() for thread in threads):
        largest = max(largest, server.ask("STATS")["queue_events"])
    assert done == [5000] * 4
    assert server.ask("STATS")["stored_total"] == 20_000
    # What one read of each client brings may come on top of the limit.
    assert 0 < largest < 200 + 4 * 2500


def test_many_commands_at_once_are_answered_one_by_one(server: ServerProcess) -> None:
    exchange(server.port, b"".join(events("e", 1000)))
    replies = exchange(server.port, b"EVENTS t 1000\n" * 200)

    assert [len(reply["events"]) for reply in replies] == [1000] * 200
    assert server.rss_bytes < 200 << 20
