"""Lanes: added while servers run; no plan depends on statistics or is compiled, and an old snapshot costs nothing."""

from __future__ import annotations

import time

import pytest

from tests.harness.account import Account
from tests.harness.load_client import Load
from tests.harness.polling import wait_until
from tests.harness.postgres import Cluster, StartCluster
from tests.harness.record import RecordFigures
from tests.harness.server_process import StartServer
from tests.harness.sizes import HELD_COMMITS, SLACK
from tests.harness.wire import Peer

SCANS = """
SELECT schemaname || '.' || relname, seq_scan, idx_scan FROM pg_stat_user_tables
WHERE schemaname LIKE 'lane%' AND relname = 'keys' ORDER BY 1
"""

STATEMENTS = "SELECT query FROM pg_stat_statements"


def lanes_used(cluster: Cluster, name: str) -> set[int]:
    """The lanes that the topics are in."""
    return {lane for (lane,) in cluster.primary.rows("SELECT DISTINCT lane FROM aggregator.topics", name)}


def test_lanes_are_added_while_servers_run(
    shared_cluster: Cluster, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """A server that is started with more lanes creates them. Topics keep their lanes; new topics use all lanes."""
    cluster = shared_cluster
    name = cluster.new_database()
    url = cluster.url(name)
    old = start_server("--lanes", "2", "--standbys", "0", url=url)
    accounts = [Account(f"t{number}") for number in range(12)]
    for account in accounts[:6]:
        account.send(old.port, "old", 50)
    load = Load(accounts[0], old.port, 1, "load")
    load.wait_for_acks()
    assert lanes_used(cluster, name) == {0, 1}
    new = start_server("--lanes", "6", "--standbys", "0", url=url)
    for account in accounts:
        account.send(new.port, "new", 50)
    for account in accounts:  # the old server learns of lanes and topics that it has not created
        account.send(old.port, "last", 50)
        account.send(old.port, "new", 50)
    load.stop()
    load.finish()
    assert lanes_used(cluster, name) > {0, 1}
    verdicts = [account.verify((old, new)[number % 2]) for number, account in enumerate(accounts)]
    assert sum(verdict.stored for verdict in verdicts) == sum(len(account.sent) for account in accounts)
    for server in (old, new):
        assert server.stop() == 0
    record_figures("lanes added", lost=0, stored=sum(len(account.sent) for account in accounts))


def test_no_plan_depends_on_statistics(start_cluster: StartCluster, start_server: StartServer) -> None:
    """Even with an empty table, or one never analysed, a key is never looked up by a scan of all the keys."""
    cluster = start_cluster(autovacuum="off")
    name = cluster.new_database()
    server = start_server("--lanes", "1", "--standbys", "0", url=cluster.url(name))
    ((_, made, _),) = cluster.primary.rows(SCANS, name)  # creating an index scans the table
    account = Account()
    for number in range(20):
        account.send(server.port, f"r{number}", 300)
        account.send(server.port, f"r{number // 2}", 300)
    account.verify(server)
    assert server.stop() == 0
    wait_until(lambda: cluster.primary.rows(SCANS, name)[0][2] >= 6_000)  # statistics arrive with a delay
    scans = cluster.primary.rows(SCANS, name)
    assert [(table, scanned) for table, scanned, _ in scans] == [("lane_0.keys", made)]


def test_no_plan_is_compiled(start_cluster: StartCluster, start_server: StartServer) -> None:
    """A scan that is switched off looks so expensive that PostgreSQL would compile its plan, for half a second."""
    cluster = start_cluster(**{"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "all"})
    primary, name = cluster.primary, cluster.new_database()
    ((can_compile,),) = primary.rows("SELECT pg_jit_available()")
    if not can_compile:
        pytest.skip("this PostgreSQL was built without LLVM")
    primary.ask("CREATE EXTENSION pg_stat_statements", name)
    server = start_server("--lanes", "2", "--standbys", "0", url=cluster.url(name))
    Account().send(server.port, "e", 300)
    for command in ("STATS", "TOPICS", "EVENTS * 10", "EVENTS t 10 AFTER 0", "EVENT t e-1", "CURSORS"):
        assert server.ask(command)["status"] == "ok"
    wait_until(lambda: primary.rows(f"{STATEMENTS} WHERE query LIKE 'UPDATE counted %'", name))  # each 5 s
    with primary.connect(name) as control:
        control.execute("SET jit_above_cost = 0")
        control.execute("SELECT count(*) FROM pg_class")
    assert primary.rows(f"{STATEMENTS} WHERE jit_functions > 0", name) == [("SELECT count(*) FROM pg_class",)]


def test_a_snapshot_that_is_held_costs_nothing(
    shared_cluster: Cluster, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """A forgotten session holds a snapshot. Our commits stay as fast, because none changes a row; the control's do."""
    cluster = shared_cluster
    primary = cluster.primary
    name = cluster.new_database()
    server = start_server("--lanes", "1", "--standbys", "0", url=cluster.url(name))
    primary.ask("CREATE TABLE clock AS SELECT 0 AS n", name)
    account = Account()
    with Peer(server.port) as peer, primary.connect(name) as holder, primary.connect(name) as bare:
        account.heard("first", peer.ask(account.line("first")))
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM clock")
        ours, control = [], []
        for number in range(HELD_COMMITS):
            began = time.perf_counter()
            account.heard(f"e{number}", peer.ask(account.line(f"e{number}")))
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            bare.execute("UPDATE clock SET n = n + 1")
            control.append(time.perf_counter() - began)
        versions = bare.execute("SELECT pg_relation_size('clock') / 8192").fetchone()
        lane = bare.execute("SELECT pg_relation_size('lane_0.lane') / 8192").fetchone()
    tenth = HELD_COMMITS // 10
    growth = [sum(one[-tenth:]) / sum(one[:tenth]) for one in (ours, control)]
    account.verify(server)
    assert server.stop() == 0
    assert growth[0] < SLACK * 1.5
    assert lane == (1,)
    assert versions
    assert versions[0] > 2
    record_figures("snapshot held", rounds=HELD_COMMITS, last_to_first=growth[0], control_last_to_first=growth[1])
