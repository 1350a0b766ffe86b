"""How a server stops, and that it has stored everything it had read. For other ways to end it see tests/faults."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.harness.account import Account
from tests.harness.database_check import check_database
from tests.harness.load_client import Load
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import SLACK
from tests.harness.strace import has_strace, inject
from tests.harness.wire import Peer, event, events, exchange


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_sigterm_under_load_answers_what_was_read_and_exits_0(
    start_server: StartServer, loop: str, record_figures: RecordFigures
) -> None:
    """T42: no new client after 100 ms, exit code 0 within 5 s, every line that was read is answered, no WAL is left."""
    server = start_server(loop=loop)
    account = Account()
    load = Load(account, server.port, 8)
    load.wait_for_acks(100)
    with Peer(server.silent_port) as shipper:  # stays open for a while, so that the server has to wait
        shipper.send(event("x", topic="other"))
        wait_until(lambda: server.ask("TOPICS")["total"] == 2)
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        wait_until(lambda: "SIGTERM: stopping" in server.log)
        wait_until(lambda: refuses(server.port))
        refused_s = time.monotonic() - started
        assert refused_s < SLACK * (0.1 + 0.5), "100 ms, and what the backlog may take"
        assert server.process.poll() is None
    assert server.wait() == 0
    ended_s = time.monotonic() - started
    assert ended_s < SLACK * 5
    load.finish()
    assert set(account.errors.values()) <= {"shutting_down"}
    assert not server.db.with_name("events.db-wal").exists()
    check_database(server.db)
    assert "stopped:" in server.log
    assert "Traceback" not in server.log
    server.restart()
    verdict = account.verify(server)
    record_figures(f"SIGTERM under load ({loop})", **verdict.figures, refused_s=refused_s, ended_s=ended_s)


def refuses(port: int) -> bool:
    try:
        Peer(port).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it came just when the port was closed
    return False


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_sigterm_with_idle_clients_ends_in_time(
    start_server: StartServer, loop: str, record_figures: RecordFigures
) -> None:
    """T43: within the drain timeout plus 2 s."""
    server = start_server("--drain-timeout", "1", loop=loop)
    idle = [Peer(server.port) for _ in range(25)] + [Peer(server.silent_port) for _ in range(25)]
    wait_until(lambda: server.ask("STATS")["connections"] == 51)
    started = time.monotonic()
    assert server.stop() == 0
    ended_s = time.monotonic() - started
    record_figures(f"SIGTERM with idle clients ({loop})", ended_s=ended_s)
    assert ended_s < SLACK * 3
    for peer in idle:
        assert peer.raw_rest() == b""
        peer.close()


def test_sigterm_lets_silent_senders_finish(server: ServerProcess) -> None:
    """The server closes its half, and reads what a shipper still sends until the shipper closes its half too."""
    with Peer(server.silent_port) as shipper:
        shipper.send(b"".join(events("before", 100)))
        wait_until(lambda: server.ask("STATS")["stored_total"] == 100)
        server.signal(signal.SIGTERM)
        assert shipper.raw_rest() == b""  # it sees the end of our half …
        shipper.send(b"".join(events("after", 5000)))  # … and what it sends after that still counts
    assert server.wait() == 0
    server.restart()
    assert server.ask("STATS")["stored_total"] == 5100


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_sigterm_loses_nobody_who_has_connected_and_is_not_accepted_yet(start_server: StartServer, loop: str) -> None:
    server = start_server(loop=loop)
    server.signal(signal.SIGSTOP)
    for number in range(50):
        with Peer(server.silent_port) as short:
            short.send(event(f"e{number}"))
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGCONT)
    assert server.wait() == 0
    server.restart()
    assert server.ask("STATS")["stored_total"] == 50


def test_a_silent_client_that_says_nothing_does_not_hold_up_the_end(server: ServerProcess) -> None:
    """rsyslog is such a client: it checks for our half of the close only before it sends."""
    with Peer(server.silent_port) as idle:
        idle.send(event("e"))
        wait_until(lambda: server.ask("STATS")["stored_total"] == 1)
        assert server.stop() == 0
    assert "did not end in time" not in server.log


def test_events_read_while_stopping_are_told_so(server: ServerProcess) -> None:
    with Peer(server.silent_port) as shipper, Peer(server.port) as busy:
        shipper.send(event("x"))
        wait_until(lambda: server.ask("STATS")["stored_total"] == 1)
        busy.send(b"".join(events("e", 20_000)))
        busy.reply()
        server.signal(signal.SIGTERM)
        assert shipper.raw_rest() == b""
        replies = busy.rest()
    assert server.wait() == 0
    known = [reply for reply in replies if reply["status"] == "stored"]
    told = [reply for reply in replies if reply["status"] == "error"]
    assert {reply["code"] for reply in told} <= {"shutting_down"}
    server.restart()
    stored = server.stored("t")
    assert {reply["event_id"] for reply in known} <= stored.keys()
    assert not {reply["event_id"] for reply in told} & stored.keys()


def test_a_second_signal_ends_at_once(server: ServerProcess, record_figures: RecordFigures) -> None:
    """T44: within a second, with exit code 1."""
    with Peer(server.silent_port) as stubborn:
        stubborn.send(event("e"))
        wait_until(lambda: server.ask("STATS")["stored_total"] == 1)
        server.signal(signal.SIGINT)
        wait_until(lambda: "SIGINT: stopping" in server.log)
        started = time.monotonic()

        def ended() -> bool:
            server.signal(signal.SIGINT)  # at first it counts as a repetition of the first signal
            return server.process.poll() is not None

        wait_until(ended)
        assert server.wait() == 1
        ended_s = time.monotonic() - started
    record_figures("a second signal", ended_s=ended_s)
    assert ended_s < SLACK * 1
    server.restart()
    assert server.ask("STATS")["stored_total"] == 1


@pytest.mark.root
@has_strace
def test_a_store_that_fails_while_the_server_stops_is_named(server: ServerProcess) -> None:
    with Peer(server.silent_port) as shipper:
        shipper.send(event("before"))
        wait_until(lambda: server.ask("STATS")["stored_total"] == 1)
        with inject(server, "fdatasync:error=EIO", server.db.with_name("events.db-wal")):
            server.signal(signal.SIGTERM)
            assert shipper.raw_rest() == b""
            shipper.send(event("failing"))
            assert server.wait() == 1
    assert "the store has failed: disk I/O error (SQLITE_IOERR_FSYNC)" in server.log
    assert "Traceback" not in server.log


def test_a_damaged_database_is_said_to_who_asks_and_holds_up_nobody(server: ServerProcess) -> None:
    exchange(server.port, b"".join(events("e", 5000)))
    server.stop()
    server.restart()
    with server.db.open("r+b") as file:  # overwrite all but the first pages
        file.seek(20 * 4096)
        file.write(os.urandom(server.db.stat().st_size - 20 * 4096))
    replies = exchange(server.port, b"EVENTS t 1000\nPING\n")
    assert replies[0]["code"] == "storage"
    assert replies[1] == {"status": "ok", "pong": True}


def test_acks_are_durable_by_sqlites_own_settings(server: ServerProcess) -> None:
    """The file format says WAL; the fsync of every commit is checked in the system calls (T4)."""
    exchange(server.port, event("e"))
    assert server.db.read_bytes()[18:20] == b"\x02\x02", "the file format says WAL"
