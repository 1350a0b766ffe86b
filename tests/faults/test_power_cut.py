"""The plug is pulled: what is not synced is gone, what is acked is not. And a control that shows it would be seen."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.checker import Ledger, Sender, Verdict, check_database, total
from tests.conftest import StartServer
from tests.faults.disk import Ext4Image
from tests.faults.record import RecordFigures
from tests.faults.sizes import CONTROL_ROUNDS, POWER_CUT_ROUNDS
from tests.server_process import ServerProcess, wait_until

# The same server, but each commit is left in the page cache, while the store believes to have been obeyed.
_WITHOUT_SYNC_AT_COMMIT = """
import sys
from aggregator import cli, store

class Careless(store._Connection):
    def execute(self, sql, *parameters):
        if sql.startswith("PRAGMA synchronous"):
            sql = "PRAGMA synchronous = NORMAL" if "=" in sql else "SELECT 2"
        return super().execute(sql, *parameters)

store._Connection = Careless
sys.exit(cli.main())
"""


def wait_until_it_stands_still(server: ServerProcess) -> None:
    """A sync that has begun is carried through before its thread stops: a copy must not see half of one."""
    wait_until(lambda: all(_state(task) == "T" for task in Path(f"/proc/{server.pid}/task").iterdir()))


def cut_power(server: ServerProcess, disk: Ext4Image, name: str) -> Ext4Image:
    """End a server together with its disk; what is left on the disk. The moment is that of the copy.

    The server stands still meanwhile, and everything that is acked until then has been received.
    """
    server.signal(signal.SIGSTOP)
    wait_until_it_stands_still(server)
    left = disk.copy(name)
    server.kill()
    return left


def pull_the_plug(
    start_server: StartServer, disk: Ext4Image, name: str, after_s: float, program: str | None = None
) -> tuple[Verdict, float]:
    """Load a server, cut its power, and start another one on what is left; the verdict, and how long that took."""
    server = start_server(db=disk.folder / name / "events.db", program=program)
    ledger = Ledger()
    senders = [Sender(ledger, server.port, f"c{i}") for i in range(4)]
    wait_until(lambda: all(sender.acks for sender in senders))
    time.sleep(after_s)  # the moment of the fault, not a wait for anything
    left = cut_power(server, disk, name)
    for sender in senders:
        sender.join(30)

    try:
        error = left.mount()  # replays the file system's journal
        assert error is None, error
        started = time.monotonic()
        survivor = start_server(db=left.folder / name / "events.db")
        assert survivor.ask("HEALTH")["health"] == "healthy"
        recovered_s = time.monotonic() - started
        verdict = ledger.judge(survivor)
        if program is None:
            ledger.verify(survivor)
        assert survivor.stop() == 0
        check_database(survivor.db)
    finally:
        left.remove()
    return verdict, recovered_s


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(") ")[2][0]


@pytest.mark.root
def test_a_power_cut_loses_nothing_that_was_acked(
    start_server: StartServer, ext4_image: Ext4Image, moments: random.Random, record_figures: RecordFigures
) -> None:
    """T2: at random moments, the first commits and those beside a checkpoint included: LOST = 0 in each round."""
    verdicts, slowest_s = [], 0.0
    for number in range(POWER_CUT_ROUNDS):
        after_s = moments.choice((0.0, 0.1, 1.5)) * moments.random()
        verdict, recovered_s = pull_the_plug(start_server, ext4_image, f"cut{number}", after_s)
        verdict.assert_flawless()
        verdicts.append(verdict)
        slowest_s = max(slowest_s, recovered_s)
    record_figures("power cut", rounds=POWER_CUT_ROUNDS, **total(verdicts), recovery_s=slowest_s)


@pytest.mark.root
def test_without_a_sync_at_commit_a_power_cut_is_seen_to_lose_what_was_acked(
    start_server: StartServer, ext4_image: Ext4Image, record_figures: RecordFigures
) -> None:
    """T3, the control: the same harness on ``synchronous=NORMAL`` loses acked events. Else it would be blind.

    Not all of them, for a checkpoint syncs what is in the WAL: a cut right behind one loses nothing. So several rounds
    count together, cut as soon as there are acks.
    """
    verdicts = [
        pull_the_plug(start_server, ext4_image, f"careless{number}", 0, _WITHOUT_SYNC_AT_COMMIT)[0]
        for number in range(CONTROL_ROUNDS)
    ]
    figures = total(verdicts)
    assert figures["lost"] > 0
    record_figures("power cut without a sync at commit (control)", rounds=CONTROL_ROUNDS, **figures)
