"""Settings of PostgreSQL that would weaken an ack: the server refuses to start, and says which one."""

from __future__ import annotations

import pytest

from tests.harness.postgres import Cluster, StartCluster
from tests.harness.server_process import StartServer


def refusal(new_server: StartServer, url: str, *options: str) -> str:
    """What a server says that does not start."""
    server = new_server("--lanes", "1", *options, url=url)
    assert not server.try_to_start()
    assert server.wait() == 1
    return server.log


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_primary_that_does_not_sync_is_refused(
    start_cluster: StartCluster, new_server: StartServer, setting: str
) -> None:
    cluster = start_cluster(**{setting: "off"})
    said = refusal(new_server, cluster.url(cluster.new_database()), "--standbys", "0")
    assert setting in said


@pytest.mark.parametrize("value", ["off", "local", "remote_write"])
@pytest.mark.parametrize("whose", ["ROLE postgres", "DATABASE {}"])
def test_a_commit_that_does_not_wait_is_refused(
    start_cluster: StartCluster, new_server: StartServer, whose: str, value: str
) -> None:
    """Set for a role or a database, where nobody looks."""
    cluster = start_cluster(1)
    name = cluster.new_database()
    cluster.primary.ask(f"ALTER {whose.format(name)} SET synchronous_commit = {value}")
    assert "synchronous_commit" in refusal(new_server, cluster.url(name), "--standbys", "1")


def test_standbys_that_nobody_waits_for_are_refused(start_cluster: StartCluster, new_server: StartServer) -> None:
    cluster = start_cluster(1, synchronous="")
    name = cluster.new_database()
    assert "synchronous_standby_names" in refusal(new_server, cluster.url(name), "--standbys", "1")


def test_another_isolation_by_default_harms_nothing(start_cluster: StartCluster, new_server: StartServer) -> None:
    """A batch needs READ COMMITTED, because it looks again after it has locked the lane."""
    cluster: Cluster = start_cluster()
    name = cluster.new_database()
    cluster.primary.ask(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    server = new_server("--lanes", "1", "--standbys", "0", url=cluster.url(name))
    if server.try_to_start():
        assert server.ask("HEALTH")["health"] == "healthy"
    else:
        assert "transaction_isolation" in server.log
