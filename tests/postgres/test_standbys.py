"""Commits that wait for a standby: nothing is acked before a standby has it, however the wait ends."""

from __future__ import annotations

import select

import psycopg
import pytest

from tests.harness.account import Account
from tests.harness.background import in_background
from tests.harness.polling import wait_until
from tests.harness.postgres import Cluster, Server, StartCluster
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Peer

KEYS = "CREATE TABLE plain (key text PRIMARY KEY)"
APPEND = ".append("
INSERT = "INSERT INTO plain VALUES ('one') ON CONFLICT DO NOTHING"


@pytest.fixture
def cluster(start_cluster: StartCluster) -> Cluster:
    """A primary and a standby that it waits for."""
    return start_cluster(1)


@pytest.fixture
def name(cluster: Cluster) -> str:
    """The database."""
    return cluster.new_database()


@pytest.fixture
def server(cluster: Cluster, name: str, start_server: StartServer) -> ServerProcess:
    """A server of ours, whose URL names both."""
    return start_server("--lanes", "1", "--standbys", "1", url=cluster.url(name))


@pytest.fixture
def account(server: ServerProcess) -> Account:
    """Ten events are acked, and all others will be accounted for."""
    account = Account()
    account.send(server.port, "before", 10)
    return account


def verify(account: Account, server: ServerProcess, record_figures: RecordFigures, name: str, **figures: int) -> None:
    """Assert that all that was acked is stored once, stop the server, and record the figures under this name."""
    verdict = account.verify(server)
    assert server.stop() == 0
    record_figures(name, **figures, **verdict.figures)


def freeze(cluster: Cluster) -> Server:
    """Let the standby receive nothing more, while the primary believes that the standby is there."""
    (standby,) = cluster.standbys
    standby.freeze("walreceiver")
    return standby


def wait_for_unknown(server: ServerProcess, count: int) -> None:
    """Wait until the outcome of a batch has been unknown to the server this many times."""
    wait_until(lambda: server.ask("STATS")["unknown_appends"] >= count)


def said_nothing(peer: Peer) -> bool:
    return not select.select([peer.socket], [], [], 0)[0]


def test_a_wait_that_somebody_cancels_is_no_ack(
    cluster: Cluster, name: str, server: ServerProcess, account: Account, record_figures: RecordFigures
) -> None:
    """``pg_cancel_backend`` ends the wait, and PostgreSQL reports success with a warning. The batch is sent again."""
    primary = cluster.primary
    primary.ask(KEYS, name)
    standby = freeze(cluster)
    with Peer(server.port) as peer:
        peer.send(account.line("one"))
        for number in range(3):
            waiting = primary.wait_for_waiting(APPEND)
            primary.ask(f"SELECT pg_cancel_backend({waiting})")
            wait_for_unknown(server, number + 1)
            assert said_nothing(peer)
        primary.wait_for_waiting(APPEND)
        assert server.ask("HEALTH")["health"] == "degraded"

        # The control: a client that ignores the warning believes in a row that no standby has.
        notices: list[str] = []
        with primary.connect(name) as bare:
            bare.add_notice_handler(lambda notice: notices.append(notice.severity_nonlocalized or ""))
            inserting = in_background(lambda: bare.execute(INSERT))
            primary.wait_for_waiting("INTO plain")
            primary.ask(f"SELECT pg_cancel_backend({bare.info.backend_pid})")
            inserting.finish()
        assert notices == ["WARNING"]
        assert primary.ask("SELECT count(*) FROM plain", name) == 1
        assert standby.ask("SELECT count(*) FROM plain", name) == 0
        assert said_nothing(peer)

        standby.thaw("walreceiver")
        reply = peer.reply()
        assert reply["status"] == "stored"
        account.heard("one", reply)
    wait_until(lambda: server.ask("HEALTH")["health"] == "healthy")
    verify(account, server, record_figures, "cancelled wait", rounds=3)


def test_duplicates_wait_for_the_standby_too(
    cluster: Cluster, name: str, server: ServerProcess, account: Account, record_figures: RecordFigures
) -> None:
    """The primary restarts with a commit that no standby has. Duplicates of it get no ack that could be lost later."""
    old = cluster.primary
    old.ask(KEYS, name)
    standby = freeze(cluster)
    with Peer(server.port) as peer, Peer(server.port) as other:
        names = [f"new-{number}" for number in range(100)]
        peer.send(account.lines(names))
        old.wait_for_waiting(APPEND)
        with psycopg.connect(old.url(name), autocommit=True) as bare:
            inserting = in_background(lambda: bare.execute(INSERT))
            old.wait_for_waiting("INTO plain")
            old.kill()
            with pytest.raises(psycopg.OperationalError):
                inserting.finish()
        old.start()

        # The control: the row is on no standby, but the client is told at once that there is nothing to do.
        with old.connect(name) as bare:
            assert bare.execute(INSERT).rowcount == 0
        other.send(account.lines(names))
        old.wait_for_waiting("lane_0.")  # the batch, or the commit of a new reading connection before it
        assert said_nothing(peer)
        assert said_nothing(other)

        old.kill()
        standby.kill()  # and lose what the kernel held for it
        standby.start()
        cluster.fail_over()
        assert cluster.primary.ask("SELECT count(*) FROM plain", name) == 0  # its client was told that it exists
        cluster.rejoin(old)
        for client in (peer, other):
            for event_id in names:
                account.heard(event_id, client.reply())
    verify(account, server, record_figures, "duplicates only, crash, failover")


def test_without_its_standby_nothing_is_acked_and_acks_resume(
    cluster: Cluster, server: ServerProcess, account: Account, record_figures: RecordFigures
) -> None:
    """HEALTH says that nothing can be stored. When the standby is back, everything that waited is acked."""
    (standby,) = cluster.standbys
    standby.stop()
    with Peer(server.port) as peer:
        peer.send(account.line("one"))
        wait_until(lambda: server.ask("HEALTH")["health"] == "degraded")
        assert said_nothing(peer)
        standby.start()
        account.heard("one", peer.reply())
    wait_until(lambda: server.ask("HEALTH")["health"] == "healthy")
    verify(account, server, record_figures, "standby gone")


def test_standbys_that_are_no_longer_named_stop_the_acks(
    cluster: Cluster, server: ServerProcess, account: Account, record_figures: RecordFigures
) -> None:
    """Patroni itself empties ``synchronous_standby_names`` when the standby is gone. No event is acked without one."""
    (standby,) = cluster.standbys
    standby.stop()
    names = cluster.primary.ask("SHOW synchronous_standby_names")
    cluster.primary.set(synchronous_standby_names="")
    with Peer(server.port) as peer:
        peer.send(account.line("one"))
        wait_until(lambda: server.ask("HEALTH")["health"] == "degraded")
        assert said_nothing(peer)
        standby.start()
        cluster.primary.set(synchronous_standby_names=names)
        account.heard("one", peer.reply())
    wait_until(lambda: server.ask("HEALTH")["health"] == "healthy")
    verify(account, server, record_figures, "standbys no longer named")


def test_standbys_that_nobody_names_while_a_batch_waits(
    cluster: Cluster, server: ServerProcess, account: Account, record_figures: RecordFigures
) -> None:
    """Emptying ``synchronous_standby_names`` ends all waits with success and without a warning. Nothing is acked."""
    primary = cluster.primary
    names = primary.ask("SHOW synchronous_standby_names")
    standby = freeze(cluster)
    with Peer(server.port) as peer:
        peer.send(account.line("one"))
        primary.wait_for_waiting(APPEND)
        primary.set(synchronous_standby_names="")
        wait_until(lambda: server.ask("STATS")["unknown_appends"] == 1 or not said_nothing(peer))
        assert said_nothing(peer)
        assert server.ask("HEALTH")["health"] == "degraded"
        primary.set(synchronous_standby_names=names)
        primary.wait_for_waiting(APPEND)
        assert said_nothing(peer)
        standby.thaw("walreceiver")
        reply = peer.reply()
        assert reply["status"] == "stored"
        account.heard("one", reply)
    verify(account, server, record_figures, "standbys unnamed in the wait")


def test_the_server_stops_while_a_batch_waits(
    cluster: Cluster, server: ServerProcess, account: Account, record_figures: RecordFigures
) -> None:
    """SIGTERM stops it although the standby is away. Sent again, an event without an ack is a duplicate, or new."""
    standby = freeze(cluster)
    with Peer(server.port) as peer:
        peer.send(account.line("one"))
        cluster.primary.wait_for_waiting(APPEND)
        server.stop()
        assert all(reply["status"] not in ("stored", "duplicate") for reply in peer.rest())
    standby.thaw("walreceiver")
    server.restart()
    verify(account, server, record_figures, "stopped while it waits")
