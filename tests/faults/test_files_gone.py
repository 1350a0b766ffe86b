"""The database's files are removed, renamed, replaced or written to by other programs while a server has them open."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.account import Account
from tests.harness.load_client import Load
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import SLACK
from tests.harness.wire import event, exchange


def remove_all(db: Path) -> None:
    for path in db.parent.glob(f"{db.name}*"):
        path.unlink()


def remove(suffix: str) -> Callable[[Path], None]:
    return lambda db: db.with_name(db.name + suffix).unlink()


def rename_folder(db: Path) -> None:
    db.parent.rename(db.parent.with_name("elsewhere"))


def replace_by_a_copy(db: Path) -> None:
    copy = db.with_name("copy")
    shutil.copy(db, copy)
    os.replace(copy, db)


TAMPERINGS = {
    "rm of all": remove_all,
    "rm of the database": remove(""),
    "rm of the WAL": remove("-wal"),
    "rm of the lock": remove(".lock"),
    "mv of the folder": rename_folder,
    "a copy in its place": replace_by_a_copy,
}


@pytest.mark.parametrize("tamper", TAMPERINGS.values(), ids=TAMPERINGS)
def test_a_server_whose_files_are_gone_stops_within_a_second_without_traffic(
    server: ServerProcess, tamper: Callable[[Path], None], record_figures: RecordFigures
) -> None:
    """T49: without any traffic the server still ends, with exit code 1 and one line that names the file."""
    exchange(server.port, event("before"))
    tamper(server.db)
    started = time.monotonic()
    assert server.wait() == 1
    ended_s = time.monotonic() - started
    assert ended_s < SLACK * 2
    assert server.log.count("while it was open") == 1
    assert "Traceback" not in server.log
    record_figures("files are gone", ended_s=ended_s)


@pytest.mark.parametrize("tamper", [remove_all, replace_by_a_copy], ids=["rm of all", "a copy in its place"])
def test_no_event_is_acked_that_no_start_will_find(
    server: ServerProcess, tamper: Callable[[Path], None], record_figures: RecordFigures
) -> None:
    """T49: under load. After the first missing ack, no other ack follows."""
    account = Account()
    load = Load(account, server.port, 4)
    load.wait_for_acks(1000)
    tamper(server.db)
    gone_at = max(account.acked.values())
    load.finish()
    assert server.wait() == 1
    later = [seq for seq in account.acked.values() if seq > gone_at]
    # Batches that were in flight at that moment: at most two of each client's window.
    assert len(later) <= 4 * 2 * 200
    assert set(account.errors.values()) <= {"storage"}
    record_figures("files are gone under load", acked=len(account.acked), acked_in_that_moment=len(later))


def test_a_stop_says_that_the_files_are_gone(server: ServerProcess) -> None:
    """T49: a SIGTERM right after the removal does not exit with 0."""
    exchange(server.port, event("e"))
    remove_all(server.db)
    assert server.stop() == 1
    assert "stopped: 1 events" not in server.log


def test_a_second_server_without_the_lock_harms_nobody(
    start_server: StartServer, server: ServerProcess, record_figures: RecordFigures
) -> None:
    """T50: the lock file is removed, and another server opens the same database and stores events."""
    account = Account()
    account.send(server.port, "first", 100)
    server.db.with_name(server.db.name + ".lock").unlink()
    second = start_server(db=server.db)
    account.send(second.port, "second", 100)
    assert server.wait() == 1
    assert second.stop() in (0, 1)
    restarted = start_server(db=server.db)
    verdict = account.verify_and_stop(restarted)
    record_figures("a second server without the lock", **verdict.figures)


def test_next_seq_that_was_written_back_is_noticed_and_mended(
    server: ServerProcess, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """T50: the next batch is not stored, the server ends, and the next start never gives a seq twice."""
    account = Account()
    account.send(server.port, "before", 50)
    with contextlib.closing(sqlite3.connect(server.db, isolation_level=None)) as other:
        other.execute("UPDATE totals SET next_seq = 1")
    (reply,) = exchange(server.port, account.line("refused"))
    assert (reply["status"], reply["code"]) == ("error", "storage")
    account.heard("refused", reply)
    assert server.wait() == 1
    assert "another program has stored events" in server.log
    verdict = account.verify_and_stop(start_server(db=server.db))
    record_figures("next_seq written back", **verdict.figures)


def test_a_foreign_writer_is_an_error_in_health_and_log(server: ServerProcess) -> None:
    """T50: even though nothing that it wrote matters to the server."""
    exchange(server.port, event("before"))
    with contextlib.closing(sqlite3.connect(server.db, isolation_level=None)) as other:
        other.execute("CREATE TABLE foreign_table (n)")
    wait_until(lambda: server.ask("HEALTH")["health"] == "degraded")
    assert "another program has written" in server.ask("HEALTH")["checks"]["other_writers"]
    (reply,) = exchange(server.port, event("after"))
    assert reply["status"] == "stored"
    assert server.stop() == 0
    assert server.log.count("another program has written") == 1
