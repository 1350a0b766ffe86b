"""Real write errors, and not only a system call that says so.

After one, Linux marks the pages as clean that it could not write: they go on being read as they were written, and the
next sync succeeds without them. So what a server finds after its restart may be in memory only.
"""

from __future__ import annotations

import signal
import time

import pytest

from tests.checker import Ledger, Sender, Verdict, check_database
from tests.conftest import StartServer
from tests.faults.disk import FailingDisk
from tests.faults.record import RecordFigures
from tests.faults.test_power_cut import cut_power, wait_until_it_stands_still
from tests.server_process import ServerProcess, wait_until
from tests.wire import exchange


def stop_the_disk(server: ServerProcess, disk: FailingDisk) -> None:
    """From now on what the server writes to new places fails; nothing of it is on its way at that moment."""
    server.signal(signal.SIGSTOP)
    wait_until_it_stands_still(server)
    disk.break_down()
    server.signal(signal.SIGCONT)


def judge_after_a_power_cut(
    server: ServerProcess, disk: FailingDisk, ledger: Ledger, start_server: StartServer
) -> Verdict:
    left = cut_power(server, disk, "left")
    try:
        error = left.mount()
        assert error is None, error
        survivor = start_server(db=left.folder / "events.db")
        verdict = ledger.judge(survivor)
        verdict.assert_flawless()
        assert survivor.stop() == 0
        check_database(survivor.db)
    finally:
        left.remove()
    return verdict


@pytest.mark.root
def test_what_is_acked_after_a_write_error_and_a_restart_survives_a_power_cut(
    start_server: StartServer, failing_disk: FailingDisk, record_figures: RecordFigures
) -> None:
    """T5 with T2: an error of the disk, a restart without one of the machine, more events, and then the power is cut.

    The restarted server has in its WAL what could not be written. If it took that for stored, each later commit would
    stand behind a hole, where the recovery from a power cut ends: measured before the WAL was written anew at the
    start, 400 of 900 acked events were lost.
    """
    ledger = Ledger()
    server = start_server(db=failing_disk.folder / "events.db")
    sender = Sender(ledger, server.port, "before")
    wait_until(lambda: sender.acks > 100)
    stop_the_disk(server, failing_disk)
    assert server.wait() == 1
    sender.join(30)
    assert "the store has failed: disk I/O error (SQLITE_IOERR_FSYNC)" in server.log

    failing_disk.heal()
    server.restart()
    ledger.verify(server)
    verdict = judge_after_a_power_cut(server, failing_disk, ledger, start_server)
    record_figures("write error, restart, power cut", **verdict.figures)


@pytest.mark.root
def test_what_a_failed_checkpoint_could_not_write_survives_a_power_cut_after_the_next_one(
    start_server: StartServer, failing_disk: FailingDisk, record_figures: RecordFigures
) -> None:
    """T7 with T2: the database cannot grow, the disk is mended, the checkpoint is done again, and the power is cut.

    Measured before the server made the kernel forget what it could not write: a malformed database.
    """
    ledger = Ledger()
    server = start_server(db=failing_disk.folder / "events.db")

    def send(prefix: str, count: int) -> None:
        names = [f"{prefix}-{number}" for number in range(count)]
        replies = exchange(server.port, b"".join([ledger.line(name, f'{{"x":"{"x" * 500}"}}') for name in names]))
        for name, reply in zip(names, replies, strict=True):
            ledger.heard(name, reply)

    def checkpoint() -> str:
        return str(server.ask("HEALTH")["checks"]["checkpoint"])

    send("first", 2000)  # the WAL has its place on the disk from now on, and is written over after the checkpoint
    sent = time.monotonic()
    wait_until(lambda: server.ask("HEALTH")["checks"]["checkpoint_age_s"] < time.monotonic() - sent)
    stop_the_disk(server, failing_disk)
    send("second", 500)
    wait_until(lambda: checkpoint() != "ok")
    assert server.ask("HEALTH")["health"] == "degraded"
    failing_disk.heal()
    wait_until(lambda: checkpoint() == "ok")
    send("third", 10)  # from here the WAL is written over
    assert not ledger.errors
    verdict = judge_after_a_power_cut(server, failing_disk, ledger, start_server)
    record_figures("write error at a checkpoint, a second one, power cut", **verdict.figures)
