"""Real write errors, as opposed to system calls that only report an error.

After a write error Linux marks the pages that it could not write as clean. Reads still return them as they were
written, and the next sync succeeds without them. So what a restarted server finds may be in memory only.
"""

from __future__ import annotations

import signal
import time

import pytest

from tests.harness.account import Account, Verdict
from tests.harness.database_check import check_database
from tests.harness.disk import FailingDisk
from tests.harness.load_client import LoadClient
from tests.harness.polling import wait_until
from tests.harness.power_cut import cut_power, wait_until_it_stands_still
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer


def stop_the_disk(server: ServerProcess, disk: FailingDisk) -> None:
    """Let the server's writes to new places fail from now on; no write is in progress at that moment."""
    server.signal(signal.SIGSTOP)
    wait_until_it_stands_still(server)
    disk.break_down()
    server.signal(signal.SIGCONT)


def judge_after_a_power_cut(
    server: ServerProcess, disk: FailingDisk, account: Account, start_server: StartServer
) -> Verdict:
    left = cut_power(server, disk, "left")
    try:
        error = left.mount()
        assert error is None, error
        survivor = start_server(db=left.folder / "events.db")
        verdict = account.judge(survivor)
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
    """T5 with T2: an error of the disk, a restart of the server alone, more events, and then a power cut.

    The restarted server finds in its WAL what could not be written. If it took that for stored, each later commit would
    follow a hole, where the recovery from a power cut ends. Before a start rewrote the WAL, 400 of 900 acked events
    were lost here.
    """
    account = Account()
    server = start_server(db=failing_disk.folder / "events.db")
    client = LoadClient(account, server.port, "before")
    client.wait_for_acks(100)
    stop_the_disk(server, failing_disk)
    assert server.wait() == 1
    client.finish()
    assert "the store has failed: disk I/O error (SQLITE_IOERR_FSYNC)" in server.log

    failing_disk.heal()
    server.restart()
    account.verify(server)
    verdict = judge_after_a_power_cut(server, failing_disk, account, start_server)
    record_figures("write error, restart, power cut", **verdict.figures)


@pytest.mark.root
def test_what_a_failed_checkpoint_could_not_write_survives_a_power_cut_after_the_next_one(
    start_server: StartServer, failing_disk: FailingDisk, record_figures: RecordFigures
) -> None:
    """T7 with T2: the database cannot grow, the disk is mended, the checkpoint is repeated, and the power is cut.

    Before the server made the kernel forget what it could not write, the database was malformed here.
    """
    account = Account()
    server = start_server(db=failing_disk.folder / "events.db")

    def send(prefix: str, count: int) -> None:
        account.send(server.port, prefix, count, f'{{"x":"{"x" * 500}"}}')

    def checkpoint() -> str:
        return str(server.ask("HEALTH")["checks"]["checkpoint"])

    send("first", 2000)  # from now on the WAL has its blocks on the disk, and is overwritten after the checkpoint
    sent = time.monotonic()
    while not server.has_checkpointed_since(sent):
        if time.monotonic() > sent + 5:  # the checkpoint had ended before the clock was read
            send(f"later {sent}", 1)
            sent = time.monotonic()
    stop_the_disk(server, failing_disk)
    send("second", 500)
    wait_until(lambda: checkpoint() != "ok")
    assert server.ask("HEALTH")["health"] == "degraded"
    failing_disk.heal()
    wait_until(lambda: checkpoint() == "ok")
    send("third", 10)  # from here on the WAL is overwritten
    assert not account.errors
    verdict = judge_after_a_power_cut(server, failing_disk, account, start_server)
    record_figures("write error at a checkpoint, a second one, power cut", **verdict.figures)
