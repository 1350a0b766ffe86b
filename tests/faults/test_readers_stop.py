"""SIGTERM with readers of every kind, and readers of a server whose store has failed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.harness.account import Account
from tests.harness.load_client import Load
from tests.harness.polling import wait_until
from tests.harness.reading import Reading, judge, verify
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import SLACK
from tests.harness.strace import has_strace, inject
from tests.harness.wire import Json, Peer, exchange

PAYLOAD = f'{{"n":"NAME","x":"{"x" * 2000}"}}'


def last_line(reading: Reading) -> Json:
    assert reading.control, "nothing was said"
    return reading.control[-1]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_each_reader_is_told_where_to_go_on_when_the_server_stops(
    start_server: StartServer, loop: str, record_figures: RecordFigures
) -> None:
    """R8: live, behind, stalled, half closed, with a name, with a limit, and some whose SUBSCRIBE has just arrived.
    Exit code 0 within the drain timeout, all of which a reader that does not read takes."""
    server = start_server("--drain-timeout", "2", loop=loop)
    account = Account()
    account.send(server.port, "old", 5000, PAYLOAD)
    live = Reading(server.port, "* BEAT 1", [account])
    named = Reading(server.port, "* AFTER 4000 AS me", [account])
    limited = Reading(server.port, "* LIMIT 1000000", [account])
    for reading in (live, named, limited):
        reading.wait_for_line("caught_up")
    half_closed = Reading(server.port, "*", [account])
    half_closed.peer.half_close()
    stalled = Reading(server.port, "* AFTER 0", [account], receive_buffer=4096, paused=True)
    wait_until(lambda: "stalled" in [one["state"] for one in server.ask("SUBSCRIBERS")["subscribers"]])
    load = Load(account, server.port, 2, in_flight=20)
    load.wait_for_acks()
    behind = [Reading(server.port, "* AFTER 0", [account]) for _ in range(4)]
    late = [Peer(server.port) for _ in range(10)]
    for peer in late:
        peer.ask(b"PING\n")
    for peer in late:
        peer.send(b"SUBSCRIBE * AFTER 4900\n")
    server.signal(signal.SIGTERM)
    stopping = time.monotonic()
    assert server.wait() == 0
    stopped_s = time.monotonic() - stopping
    stalled.go_on()
    load.finish()
    readings = [live, named, limited, half_closed, *behind]
    for reading in [*readings, stalled]:
        reading.finish()
    for reading in readings:
        assert (last_line(reading)["status"], last_line(reading)["code"]) == ("error", "shutting_down")
        verify(reading, [account])
        assert reading.position == max([reading.after, *reading.seqs])
    judge([stalled], [account]).assert_flawless()
    told = [peer.rest() for peer in late]
    assert {lines[-1]["code"] for lines in told if lines} == {"shutting_down"}, "not told: its SUBSCRIBE was not read"
    for peer in late:
        peer.close()
    assert "Traceback" not in server.log
    assert stopped_s < SLACK * 2
    record_figures(f"SIGTERM with readers ({loop})", stopped_s=stopped_s)

    server.restart()
    last = int(server.ask("EVENTS * 1")["seq"])
    for reading in readings:
        if reading not in (named, limited):
            again = Reading(server.port, f"* AFTER {reading.position} BEAT 1", [account])
            again.wait_for(last)
            verify([reading, again], [account])
            again.close()


def test_readers_alone_do_not_hold_up_a_stop(start_server: StartServer) -> None:
    """R8: readers that read are ended at once."""
    server = start_server("--drain-timeout", "60")
    readings = [Reading(server.port, "*", []) for _ in range(20)]
    for reading in readings:
        reading.wait_for_line("caught_up")
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 30, "not the drain timeout"
    for reading in readings:
        reading.finish()
        assert last_line(reading)["code"] == "shutting_down"


@pytest.mark.root
@has_strace
def test_a_store_that_fails_is_told_to_its_readers(server: ServerProcess, record_figures: RecordFigures) -> None:
    """R9, I7: EIO at a commit's sync. Uncommitted events are not delivered; exit code 1 as without readers."""
    account = Account()
    account.send(server.port, "e", 100)
    readings = [Reading(server.port, arguments, [account]) for arguments in ("*", "* AFTER 0", "* AFTER 0 AS me")]
    for reading in readings:
        reading.wait_for(100)
    with inject(server, "fdatasync:error=EIO"):
        with Peer(server.port) as peer:
            assert peer.ask(account.line("lost"))["code"] == "storage"
        assert server.wait() == 1
    for reading in readings:
        reading.finish()
        assert (last_line(reading)["code"], last_line(reading)["seq"]) == ("storage", 100)
        assert "lost" not in reading.ids
        verify(reading, [account])


@pytest.mark.root
@has_strace
def test_an_ack_that_fails_stops_the_server(server: ServerProcess) -> None:
    """R9, I7: the store is broken, whichever command finds out: the client is told, and nothing is acked any more."""
    account = Account()
    account.send(server.port, "e", 10)
    with Peer(server.port) as peer:
        peer.send(b"SUBSCRIBE * AFTER 0 AS me\n")
        while peer.reply()["status"] != "caught_up":
            pass
        with inject(server, "fdatasync:error=EIO"):
            peer.send(b"ACK 10\n")
            codes = {line.get("code") for line in peer.rest()}
            assert server.wait() == 1
    assert codes == {"storage"}
    assert "the store has failed" in server.log


@pytest.mark.root
@has_strace
def test_a_read_that_fails_ends_one_subscription(server: ServerProcess, record_figures: RecordFigures) -> None:
    """R9: EIO where the backlog is read. Live readers and senders go on, and the next SUBSCRIBE may succeed."""
    account = Account()
    account.send(server.port, "e", 2000, PAYLOAD)
    server.stop()
    server.restart()  # so that none of it is in SQLite's memory any more
    live = Reading(server.port, "* BEAT 1", [account])
    live.wait_for_line("caught_up")
    with inject(server, "pread64:error=EIO", server.db):
        unlucky = Reading(server.port, "* AFTER 1000", [account])
        error = unlucky.wait_for_line("error")
    assert (error["code"], error["seq"]) == ("storage", unlucky.position)
    assert "cannot read: " in error["detail"]  # SQLite names what it could not read, an I/O error or a page
    verify(unlucky, [account])
    account.send(server.port, "f", 10)
    live.wait_for(2010)
    verify(live, [account])
    again = Reading(server.port, f"* AFTER {unlucky.position}", [account])
    again.wait_for(2010)
    verify([unlucky, again], [account])
    for reading in (live, unlucky, again):
        reading.close()
    assert server.stop() == 0


def test_a_damaged_page_ends_one_subscription(server: ServerProcess) -> None:
    """R9: bytes of the file, in the middle of the backlog. Events before them are delivered, and events after them go
    to readers that resume there."""
    account = Account()
    for number in range(20):
        account.send(server.port, f"e{number}", 100, PAYLOAD)
    server.stop()  # so that all of it is in the database file
    server.restart()
    damage(server.db, b"e10-50")
    live = Reading(server.port, "* BEAT 1", [account])
    unlucky = Reading(server.port, "* AFTER 0", [account])
    error = unlucky.wait_for_line("error")
    assert error["code"] == "storage"
    assert error["seq"] == unlucky.position
    assert 900 <= unlucky.position < 1051
    verify(unlucky, [account])
    behind = Reading(server.port, "* AFTER 1100", [account])
    behind.wait_for(2000)
    verify(behind, [account])
    exchange(server.port, account.line("last"))
    live.wait_for(2001)
    unlucky.peer.send(b"PING\n")
    unlucky.wait_for_line("ok")
    for reading in (live, unlucky, behind):
        reading.close()
    assert server.stop() == 0
    assert "Traceback" not in server.log


def damage(path: Path, text: bytes) -> None:
    """Write zeros over the page with this text of a payload: a page of data, whose pointer to the next page is lost."""
    data = path.read_bytes()
    page = data.index(b'"n":"' + text + b'"') // 4096
    with path.open("r+b") as file:
        file.seek(page * 4096)
        file.write(bytes(4096))
