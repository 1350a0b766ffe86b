"""Too much of everything: unread replies, useless lines, full queues. For more see tests/faults."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from tests.harness.background import in_background
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Peer, events, exchange


@pytest.mark.parametrize("unread", [b"STATS\n" * 10_000, b"%\n" * 100_000])
def test_what_a_muted_client_sends_is_still_stored(start_server: StartServer, unread: bytes) -> None:
    """Whatever the unread replies are, and even though the client still sends commands."""
    server = start_server("--reply-buffer-bytes", "65536")
    with Peer(server.port, receive_buffer=4096) as silent:
        sending = in_background(lambda: silent.send(unread + b"".join(events("a", 1000))))
        wait_until(lambda: server.ask("STATS")["muted"] == 1)
        sending.finish()
        silent.send(b"PING\n" * 3000 + b"".join(events("b", 1000)))
        wait_until(lambda: server.ask("STATS")["stored_total"] == 2000)
        silent.half_close()
        wait_until(lambda: server.ask("STATS")["connections"] == 1)


@pytest.mark.parametrize("line", [b"x\n", b"{}\n", b"PING " + b"'a' " * 1000 + b"\n"])
def test_a_flood_of_useless_lines_does_not_hold_up_the_others(server: ServerProcess, line: bytes) -> None:
    """Other clients are answered during the flood, which has no end, and the flood costs little memory."""
    before = server.rss_bytes
    lines = line * ((1 << 20) // len(line))
    enough = threading.Event()

    def flood() -> None:
        with Peer(server.silent_port) as flooder:  # only the limits of a turn hold it back
            while not enough.is_set():
                flooder.send(lines)

    floods = [in_background(flood) for _ in range(4)]
    wait_until(lambda: server.ask("STATS")["rejected"])
    for _ in range(5):
        assert server.ask("HEALTH")["health"] == "healthy"
    assert server.rss_bytes - before < 100 << 20
    enough.set()
    for one in floods:
        one.finish()


def test_the_queue_is_bounded_and_loses_nothing(start_server: StartServer) -> None:
    """Clients send far more than the queue holds, as fast as they can."""
    server = start_server("--queue-events", "200", "--max-batch", "50", "--queue-bytes", "100000")
    done: list[int] = []

    def flood(name: str) -> None:
        done.append(len(exchange(server.port, b"".join(events(name, 5000)))))

    threads = [in_background(partial(flood, name)) for name in ("a", "b", "c", "d")]
    largest = 0
    while any(thread.is_alive() for thread in threads):
        largest = max(largest, server.ask("STATS")["queue_events"])
    for thread in threads:
        thread.finish()
    assert done == [5000] * 4
    assert server.ask("STATS")["stored_total"] == 20_000
    # One read of each client may exceed the limit.
    assert 0 < largest < 200 + 4 * 2500


def test_many_commands_at_once_are_answered_one_by_one(server: ServerProcess) -> None:
    exchange(server.port, b"".join(events("e", 1000)))
    replies = exchange(server.port, b"EVENTS t 1000\n" * 200)

    assert [len(reply["events"]) for reply in replies] == [1000] * 200
    assert server.rss_bytes < 200 << 20
