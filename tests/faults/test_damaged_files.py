"""Files that are not as the last server left them. For foreign, newer, truncated and missing ones see test_start.py."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import changes
from tests.harness.account import Account
from tests.harness.changes import Change
from tests.harness.load_client import LoadClient
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import BIT_FLIPS, SLACK
from tests.harness.wire import Peer, exchange


def stored_by(server: ServerProcess, prefix: str, count: int) -> Account:
    account = Account()
    account.send(server.port, prefix, count)
    return account


def test_a_damaged_schema_is_refused_in_one_line(
    server: ServerProcess, new_server: StartServer, tmp_path: Path
) -> None:
    """T17. SQLite quotes the schema, which has many lines."""
    stored_by(server, "e", 10)
    assert server.stop() == 0
    sound = server.db.read_bytes()
    assert sound.count(b"-- the events as they were sent") == 1
    db = tmp_path / "damaged.db"
    db.write_bytes(sound.replace(b"-- the events as they were sent", b"`- the events as they were sent"))
    victim = new_server(db=db)

    assert not victim.try_to_start()
    assert victim.wait() == 1
    assert victim.log.count("\n") == 1
    assert "malformed database schema (blocks)" in victim.log


@pytest.mark.parametrize("where", ["header", "anywhere"])
def test_a_flipped_bit_never_makes_a_fresh_database_of_an_old_one(
    server: ServerProcess,
    new_server: StartServer,
    tmp_path: Path,
    where: str,
    moments: random.Random,
    record_figures: RecordFigures,
) -> None:
    """T17: the server refuses the file within 2 s in one line, or fails when it reads the damaged place, or serves it.

    SQLite's pages have no checksums: a flipped bit inside an event is not noticed, and nobody promises that it is. The
    promise is: no crash, no traceback, and never an empty database in place of the old one.
    """
    stored_by(server, "e", 2000)
    assert server.stop() == 0
    sound = server.db.read_bytes()
    refused = failed = 0
    for number in range(BIT_FLIPS):
        bit = moments.randrange(100 * 8 if where == "header" else len(sound) * 8)
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        db = tmp_path / f"{number}.db"
        db.write_bytes(damaged)
        victim = new_server(db=db)
        started = time.monotonic()
        if victim.try_to_start():
            with Peer(victim.port) as peer:
                peer.send(b"EVENTS t 1000\nTOPICS\n")
                peer.half_close()
                replies = peer.raw_rest()  # bytes, because a damaged event may not be JSON any more
            assert replies.count(b'{"status":"') == 2, f"bit {bit}"
            answered = exchange(victim.port, Account().line("new"))
            assert not answered or answered[0]["status"] in ("stored", "error"), f"bit {bit}: {answered}"
            failed += not answered or answered[0]["status"] == "error"
            if victim.process.poll() is None:
                victim.stop()
            assert victim.wait() in (0, 1), f"bit {bit}"
        else:
            refused += 1
            assert victim.wait() == 1, f"bit {bit}"
            assert time.monotonic() - started < SLACK * 2
            assert victim.log.count("\n") == 1, f"bit {bit}: {victim.log}"
        assert "Traceback" not in victim.log, f"bit {bit}: {victim.log}"
        left = db.read_bytes()
        assert len(left) >= len(sound), f"bit {bit}"
        assert left.count(b'"event_id":"e-') >= sound.count(b'"event_id":"e-') - 2, f"bit {bit}"
    record_figures(f"bit flips, {where}", rounds=BIT_FLIPS, refused_to_start=refused, failed=failed)


def crashed(server: ServerProcess) -> Account:
    account = Account()
    client = LoadClient(account, server.port, "e")
    client.wait_for_acks(500)
    server.kill()
    client.finish()
    return account


def without_shm(server: ServerProcess) -> None:
    server.db.with_name("events.db-shm").unlink()


def garbage_shm(server: ServerProcess) -> None:
    server.db.with_name("events.db-shm").write_bytes(os.urandom(32768))


def garbage_behind_the_wal(server: ServerProcess) -> None:
    with server.db.with_name("events.db-wal").open("ab") as wal:
        wal.write(os.urandom(10_000))


def half_a_frame_behind_the_wal(server: ServerProcess) -> None:
    path = server.db.with_name("events.db-wal")
    frame = path.read_bytes()[32 : 32 + 2000]
    with path.open("ab") as wal:
        wal.write(frame)


def a_copy_elsewhere(server: ServerProcess) -> None:
    """Copy all the files: nothing in them depends on their path."""
    folder = server.db.parent.with_name("elsewhere")
    shutil.copytree(server.db.parent, folder)
    server.db = folder / "events.db"


@pytest.mark.parametrize(
    "damage", [without_shm, garbage_shm, garbage_behind_the_wal, half_a_frame_behind_the_wal, a_copy_elsewhere]
)
def test_what_a_crash_may_leave_is_recovered(
    server: ServerProcess, damage: Callable[[ServerProcess], None], record_figures: RecordFigures
) -> None:
    """T17: after kill -9, a file next to the database is lost, or has garbage at its end: LOST = 0."""
    account = crashed(server)
    damage(server)
    started = time.monotonic()
    server.restart()
    recovered_s = time.monotonic() - started
    verdict = account.verify_and_stop(server)
    record_figures(damage.__name__, **verdict.figures, recovery_s=recovered_s)


@pytest.mark.parametrize(
    ("name", "change"),
    [("synchronous", changes.deaf_to_synchronous), ("journal_mode", changes.deaf_to_journal_mode)],
    ids=["synchronous-NORMAL", "journal_mode-DELETE"],
)
def test_settings_that_did_not_take_are_found_at_the_start(new_server: StartServer, name: str, change: Change) -> None:
    """T19: an SQLite that was built or wrapped to ignore a setting: exit code 1, and one line that says why."""
    server = new_server(changes=[change])
    assert not server.try_to_start()
    assert server.wait() == 1
    assert server.log.count("\n") == 1
    assert "an ack would not be durable with" in server.log
    assert name in server.log


def test_a_name_that_looks_like_options_for_sqlite_is_only_a_name(new_server: StartServer) -> None:
    """T19: a path cannot make the database live in memory, nor turn its journal off."""
    server = new_server()
    server.db = server.folder / "file:events.db?mode=memory&cache=shared&vfs=memdb"
    server.start()
    account = stored_by(server, "e", 10)
    server.kill()
    assert server.db.exists()
    server.restart()
    account.verify(server)
    assert server.stop() == 0
