"""Settings of PostgreSQL that would weaken an ack: the server refuses to start, and names the setting."""

from __future__ import annotations

import pytest

from tests.harness.postgres import Cluster, StartCluster
from tests.harness.server_process import StartServer
from tests.harness.wire import event, exchange


def refusal(new_server: StartServer, url: str, *options: str) -> str:
    """The log of a server that must not start."""
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
def test_a_commit_that_does_not_wait_is_refused(shared_pair: Cluster, new_server: StartServer, value: str) -> None:
    """The setting is made for one database, where it is easily overlooked."""
    name = shared_pair.new_database()
    shared_pair.primary.ask(f"ALTER DATABASE {name} SET synchronous_commit = {value}")
    assert "synchronous_commit" in refusal(new_server, shared_pair.url(name), "--standbys", "1")


def test_a_role_whose_commits_do_not_wait_is_refused(shared_pair: Cluster, new_server: StartServer) -> None:
    primary, name = shared_pair.primary, shared_pair.new_database()
    primary.ask("CREATE ROLE hasty SUPERUSER LOGIN")
    primary.ask("ALTER ROLE hasty SET synchronous_commit = off")
    url = shared_pair.url(name).replace("postgres@", "hasty@")
    assert "synchronous_commit" in refusal(new_server, url, "--standbys", "1")


def test_standbys_that_nobody_waits_for_are_refused(shared_cluster: Cluster, new_server: StartServer) -> None:
    url = shared_cluster.url(shared_cluster.new_database())
    assert "synchronous_standby_names" in refusal(new_server, url, "--standbys", "1")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_another_encoding_is_refused(shared_cluster: Cluster, new_server: StartServer, encoding: str) -> None:
    name = f"in_{encoding.lower()}"
    shared_cluster.primary.ask(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0")
    assert encoding in refusal(new_server, shared_cluster.url(name), "--standbys", "0")


def test_another_isolation_by_default_is_refused(shared_cluster: Cluster, new_server: StartServer) -> None:
    """A batch needs READ COMMITTED, because its statement looks again after it has locked the lane."""
    name = shared_cluster.new_database()
    shared_cluster.primary.ask(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    assert "transaction_isolation=repeatable read" in refusal(new_server, shared_cluster.url(name), "--standbys", "0")


def test_a_role_that_may_do_little_is_enough(shared_pair: Cluster, new_server: StartServer) -> None:
    """It owns its database, and may neither see which standbys are synchronous nor ask for the timeline."""
    primary, name = shared_pair.primary, shared_pair.new_database()
    primary.ask("CREATE ROLE humble LOGIN")
    primary.ask(f"ALTER DATABASE {name} OWNER TO humble")
    primary.ask("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC", name)
    url = shared_pair.url(name).replace("postgres@", "humble@")
    server = new_server("--standbys", "1", url=url)
    server.start()
    (stored,) = exchange(server.port, event("e"))
    assert stored["status"] == "stored"
    assert server.ask("HEALTH")["health"] == "healthy"
    assert server.ask("STATS")["standbys"] == 1
    assert server.stop() == 0
