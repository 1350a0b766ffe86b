"""A real switchover and a leader that dies under load, with Patroni and etcd: once each."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.harness import patroni
from tests.harness.account import Account
from tests.harness.load_client import Load
from tests.harness.patroni import PatroniCluster
from tests.harness.record import RecordFigures
from tests.harness.server_process import StartServer

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(400)]


@pytest.fixture
def cluster() -> Iterator[PatroniCluster]:
    """Three nodes; skipped if Patroni or etcd is not installed."""
    if reason := patroni.missing():
        pytest.skip(reason)
    made = PatroniCluster()
    try:
        yield made.start()
    finally:
        made.end()


def test_a_switchover_and_a_dead_leader_lose_and_double_nothing(
    cluster: PatroniCluster, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """First the administrator moves the leader, as before an upgrade. Then the leader is killed with its machine."""
    server = start_server("--lanes", "4", "--standbys", "1", url=cluster.url())
    account = Account()
    load = Load(account, server.port, 2, "c", in_flight=100, again=3)
    load.wait_for_acks(100)
    began = time.monotonic()
    _, leader = cluster.switch_over()
    load.wait_for_acks(500)
    switchover_s = time.monotonic() - began
    cluster.wait_until_whole(3)
    load.wait_for_acks(100)

    began = time.monotonic()
    leader.kill()
    cluster.wait_for_another_leader(leader)
    cluster.wait_until_whole(2)
    load.wait_for_acks(500)
    failover_s = time.monotonic() - began
    load.stop()
    load.finish()
    verdict = account.verify(server)
    assert not account.errors
    assert server.stop() == 0
    record_figures(
        "Patroni: a switchover and a dead leader", rounds=2, **verdict.figures,
        switchover_s=switchover_s, failover_s=failover_s,
    )  # fmt: skip
