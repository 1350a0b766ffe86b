"""The primary dies under load, a standby takes over, and the server goes on: no acked event is lost or stored twice."""

from __future__ import annotations

import random
import time

import pytest

from tests.harness.account import Account
from tests.harness.load_client import Load
from tests.harness.polling import wait_until
from tests.harness.postgres import Cluster, StartCluster
from tests.harness.record import RecordFigures
from tests.harness.server_process import StartServer
from tests.harness.sizes import FAILOVERS, SLACK
from tests.harness.wire import Peer, event, exchange

FIRST_ACK_S = 2.0
"""From the end of the old primary to the first ack after it, on a quiet machine, without the time of the promotion."""


def first_ack_s(load: Load, since: float) -> float:
    """Wait until each client has a new ack; return the seconds since ``since``."""
    load.wait_for_acks()
    return time.monotonic() - since


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_failover_loses_and_doubles_nothing(
    start_cluster: StartCluster,
    start_server: StartServer,
    moments: random.Random,
    record_figures: RecordFigures,
    lanes: int,
) -> None:
    """kill -9 of the primary and all its children at a random moment; the standby that has received most is promoted.

    Clients send a quarter of their events again, and are not told of the failover: their acks only come later.
    """
    cluster = start_cluster(2)
    url = cluster.url(cluster.new_database())
    server = start_server("--lanes", str(lanes), "--standbys", "1", url=url)
    account = Account()
    waits_s = []
    for number in range(FAILOVERS):
        load = Load(account, server.port, 3, f"r{number}c", in_flight=400, again=3)
        load.wait_for_acks(100)
        time.sleep(moments.uniform(0, 1))  # chooses the moment of the fault; it waits for nothing
        cluster.primary.kill()
        died = time.monotonic()
        old = cluster.fail_over()
        promoted_s = time.monotonic() - died
        waits_s.append(first_ack_s(load, died) - promoted_s)
        load.wait_for_acks(1_000)
        load.stop()
        load.finish()
        account.judge(server).assert_flawless()
        cluster.rejoin(old)
    verdict = account.verify(server)
    assert not account.errors
    assert server.stop() == 0
    assert max(waits_s) < SLACK * FIRST_ACK_S
    record_figures(
        f"failover, {lanes} lane{'s' * (lanes > 1)}", rounds=FAILOVERS, **verdict.figures, recovery_s=max(waits_s),
        recovery_median_s=sorted(waits_s)[len(waits_s) // 2],
    )  # fmt: skip


def test_a_failover_without_synchronous_standbys_loses(
    start_cluster: StartCluster, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """The control: the standby receives nothing for a while, no commit waits for it, and acked events are lost."""
    cluster = start_cluster(1, synchronous="")
    server = start_server("--standbys", "0", url=cluster.url(cluster.new_database()))
    account = Account()
    account.send(server.port, "kept", 100)
    (standby,) = cluster.standbys
    catch_up(cluster)
    standby.freeze()
    account.send(server.port, "lost", 1_000)
    assert not account.errors
    cluster.primary.kill()
    standby.kill()  # and with it the data that the kernel still held for it
    standby.start()
    cluster.fail_over()
    exchange(server.port, account.lines(["after"]))
    assert server.ask("EVENTS t 10 AFTER 0")["code"] == "storage", "it misses what it has stored, and says so"
    server.kill()
    server.restart()
    verdict = account.judge(server)
    assert len(verdict.lost) == 1_000
    record_figures("failover, asynchronous (control)", **verdict.figures)


@pytest.mark.parametrize("unknown", [False, True], ids=["waiting", "unknown"])
def test_topics_that_a_failover_has_lost(
    start_cluster: StartCluster, start_server: StartServer, record_figures: RecordFigures, unknown: bool
) -> None:
    """A batch has ids of topics that no standby has received: it gets new ones, unless it may be stored already."""
    cluster = start_cluster(1, synchronous="")
    server = start_server("--lanes", "1", "--standbys", "0", url=cluster.url(cluster.new_database()))
    account = Account()
    account.send(server.port, "kept", 10)
    (standby,) = cluster.standbys
    catch_up(cluster)
    standby.freeze()
    assert exchange(server.port, event("lost", "new"))[0]["status"] == "stored"
    cluster.primary.kill()
    standby.kill()  # and with it the data that the kernel still held for it
    with Peer(server.port) as first, Peer(server.port) as second:
        first.send(event("first", "new" if unknown else "t"))
        wait_until(lambda: server.ask("STATS")["unknown_appends"])
        second.send(event("second", "new"))
        wait_until(lambda: (stats := server.ask("STATS"))["received"] == 13 and stats["queue_events"] == 0)
        standby.start()
        cluster.fail_over()
        if unknown:
            assert server.wait() == 1
            assert "topics of a batch were lost" in server.log
            server.restart()
        else:
            assert first.reply()["status"] == "stored"
            assert second.reply()["status"] == "stored"
    ids = [found["event_id"] for found in server.listed("new")]
    assert ids == ([] if unknown else ["second"])
    assert len(server.listed("*")) == 10 + (0 if unknown else 2)
    assert server.stop() == 0
    record_figures("failover, topics lost", stored=len(ids), lost=1)


def catch_up(cluster: Cluster) -> None:
    """Wait until the standbys have received all that the primary has written."""
    written = cluster.primary.ask("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn")
    for standby in cluster.standbys:
        standby.wait_until_received(int(written))


@pytest.mark.parametrize("standbys", [1, 2])
def test_a_failover_to_the_only_server_that_is_left(
    start_cluster: StartCluster, start_server: StartServer, standbys: int
) -> None:
    """The new primary has no standby: nothing is acked until it has one."""
    cluster = start_cluster(standbys)
    server = start_server("--standbys", "1", url=cluster.url(cluster.new_database()))
    account = Account()
    account.send(server.port, "before", 100)
    catch_up(cluster)
    for standby in cluster.standbys[1:]:
        standby.kill()
    load = Load(account, server.port, 1, "c")
    load.wait_for_acks()
    cluster.primary.kill()
    old = cluster.fail_over()
    load.stop()  # the first ack from here on comes from the new primary and its standby
    acked = load.clients[0].acks
    cluster.rejoin(old)
    load.finish()
    assert load.clients[0].acks > acked
    account.verify(server)
    assert server.stop() == 0
