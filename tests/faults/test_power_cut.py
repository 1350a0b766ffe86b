"""The power is cut: unsynced bytes are gone, acked events are not. A control shows that a loss would be noticed."""

from __future__ import annotations

import random
import time

import pytest

from tests.harness.account import Account, Verdict, total
from tests.harness.changes import Change, no_sync_at_commit
from tests.harness.disk import Ext4Image
from tests.harness.load_client import Load
from tests.harness.power_cut import cut_power
from tests.harness.record import RecordFigures
from tests.harness.server_process import StartServer
from tests.harness.sizes import CONTROL_ROUNDS, POWER_CUT_ROUNDS


def pull_the_plug(
    start_server: StartServer, disk: Ext4Image, name: str, after_s: float, *changes: Change
) -> tuple[Verdict, float]:
    """Load a server, cut its power, start another on what is left; return the verdict, and how long that start took."""
    server = start_server(db=disk.folder / name / "events.db", changes=changes)
    account = Account()
    load = Load(account, server.port, 4)
    load.wait_for_acks()
    time.sleep(after_s)  # the moment of the fault, not a wait for anything
    left = cut_power(server, disk, name)
    load.finish()

    try:
        error = left.mount()  # replays the file system's journal
        assert error is None, error
        started = time.monotonic()
        survivor = start_server(db=left.folder / name / "events.db")
        assert survivor.ask("HEALTH")["health"] == "healthy"
        recovered_s = time.monotonic() - started
        verdict = account.judge(survivor)
        if not changes:
            account.verify_and_stop(survivor)
    finally:
        left.remove()
    return verdict, recovered_s


@pytest.mark.root
def test_a_power_cut_loses_nothing_that_was_acked(
    start_server: StartServer, ext4_image: Ext4Image, moments: random.Random, record_figures: RecordFigures
) -> None:
    """T2: at random moments, including the first commits and checkpoints: LOST = 0 in each round."""
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
    """T3, the control: the same harness on ``synchronous=NORMAL`` loses acked events; otherwise it would be blind.

    It does not lose all of them, because a checkpoint syncs the WAL: a power cut right after one loses nothing. So the
    losses of several rounds are added up, and the power is cut as soon as there are acks.
    """
    verdicts = [
        pull_the_plug(start_server, ext4_image, f"careless{number}", 0, no_sync_at_commit)[0]
        for number in range(CONTROL_ROUNDS)
    ]
    figures = total(verdicts)
    assert figures["lost"] > 0
    record_figures("power cut without a sync at commit (control)", rounds=CONTROL_ROUNDS, **figures)
