"""The connection to PostgreSQL ends at any byte of a batch or of its answer: counts and replies stay exact."""

from __future__ import annotations

import pytest

from tests.harness.account import Account
from tests.harness.polling import wait_until
from tests.harness.postgres import Cluster
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import CUT_STEP
from tests.harness.tcp_proxy import Cut, How, TcpProxy
from tests.harness.wire import Peer, event, exchange

MARKER = b".append("
"""Occurs in the statement that stores a batch."""

SILENCES = {"statement": Cut(to_server=40, how=How.SILENCE), "answer": Cut(to_client=0, how=How.SILENCE)}
"""What of a batch does not arrive."""


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """A primary alone."""
    return shared_cluster


def proxied(cluster: Cluster, proxy: TcpProxy) -> str:
    """The URL of a new database, through the proxy."""
    return cluster.primary.url(cluster.new_database()).replace(str(cluster.primary.port), str(proxy.port))


def sizes_of_a_batch(server: ServerProcess, proxy: TcpProxy, account: Account) -> dict[str, int]:
    """How many bytes a batch of two events takes on its way to PostgreSQL, and how many its answer has."""
    exchange(server.port, account.line("old"))
    proxy.arm(MARKER)
    send_two(server, account, "e-sizes")
    return dict(proxy.passed)


def send_two(server: ServerProcess, account: Account, name: str) -> None:
    """Send a new event and an old one in one batch; each must get the right status."""
    with Peer(server.port) as peer:
        peer.send(account.line(name) + account.line("old"))
        for event_id, status in ((name, "stored"), ("old", "duplicate")):
            reply = peer.reply()
            assert reply["status"] == status, f"{name}: {reply}"
            account.heard(event_id, reply)


@pytest.mark.parametrize("how", [How.CLOSE, How.RESET])
@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_the_connection_is_cut_at_any_byte(
    cluster: Cluster, start_server: StartServer, record_figures: RecordFigures, direction: str, how: How
) -> None:
    """Before the commit, in it, and after it, when only the answer is lost."""
    with TcpProxy(cluster.primary.port) as proxy:
        server = start_server("--lanes", "1", "--standbys", "0", url=proxied(cluster, proxy))
        account = Account()
        size = sizes_of_a_batch(server, proxy, account)[direction]
        positions = sorted({*range(0, size, CUT_STEP), size - 1, size})
        for position in positions:
            proxy.arm(MARKER, Cut(**{direction: position}, how=how))
            send_two(server, account, f"e-{position:05}")
            wait_until(proxy.happened.is_set)  # the last byte passes before the cut
        verdict = account.verify(server)
        assert server.stop() == 0
    assert verdict.stored == len(positions) + 2
    record_figures(f"cut {direction}, {how.value}", rounds=len(positions), **verdict.figures)


@pytest.mark.parametrize("what", SILENCES)
def test_a_connection_that_goes_silent_is_given_up(
    cluster: Cluster, start_server: StartServer, record_figures: RecordFigures, what: str
) -> None:
    """No byte arrives and neither end is told, as when a cable is cut: the server takes another connection."""
    with TcpProxy(cluster.primary.port) as proxy:
        server = start_server("--lanes", "1", "--standbys", "0", url=proxied(cluster, proxy))
        account = Account()
        exchange(server.port, account.line("old"))
        proxy.arm(MARKER, SILENCES[what])
        send_two(server, account, "one")
        verdict = account.verify(server)
        server.kill()  # its old connection may still be waiting for a peer that never answers
    record_figures(f"cut in silence, {what}", **verdict.figures)


def test_every_connection_is_reset_again_and_again(
    cluster: Cluster, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """The connections that read, and the one that hears of new events, come back too: a reader misses nothing."""
    with TcpProxy(cluster.primary.port) as proxy:
        server = start_server("--lanes", "1", "--standbys", "0", url=proxied(cluster, proxy))
        account = Account()
        with Peer(server.port) as reader, Peer(server.port) as sender:
            reader.ask(b"SUBSCRIBE t AFTER 0\n")
            for number in range(20):
                name = f"e{number}"
                sender.send(account.line(name))
                proxy.break_all()
                account.heard(name, sender.reply())
            seen: list[str] = []
            while len(seen) < 20:
                found = reader.reply()
                if found["status"] == "event":
                    seen.append(found["event"]["event_id"])
        wait_until(lambda: server.ask("HEALTH")["health"] == "healthy")
        assert seen == [f"e{number}" for number in range(20)]
        assert exchange(server.port, event("e0"))[0]["status"] == "duplicate"
        verdict = account.verify(server)
        assert server.stop() == 0
    record_figures("every connection reset", rounds=20, **verdict.figures)
