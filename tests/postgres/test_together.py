"""Several servers on one database at once: counts are exact across them, and a reader of any of them misses nothing."""

from __future__ import annotations

import threading
import time

import pytest

from tests.harness import reading
from tests.harness.account import Account
from tests.harness.background import Background, in_background
from tests.harness.load_client import Load
from tests.harness.polling import wait_until
from tests.harness.postgres import Cluster, Server
from tests.harness.reading import Reading
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import SLACK
from tests.harness.wire import Peer, event

EVENTS = 1_500
"""How many acks the senders of each server wait for."""


@pytest.fixture
def cluster(shared_pair: Cluster) -> Cluster:
    """A primary, and a standby that can be read."""
    return shared_pair


class Poller:
    """Reads the blocks of a lane AFTER the last one that it has seen, in a loop, as a bare client of one PostgreSQL."""

    def __init__(self, server: Server, name: str) -> None:
        self.seen: list[tuple[int, int]] = []
        self.last = 0
        self._enough = False
        self._server, self._name = server, name
        self._work = in_background(self._run)

    def _run(self) -> None:
        with self._server.connect(self._name) as connection:
            while not self._enough:
                found = connection.execute(
                    "SELECT first, following FROM lane_0.blocks WHERE first >= %s ORDER BY first", [self.last]
                ).fetchall()
                self.seen += found
                self.last = found[-1][1] if found else self.last

    def finish(self, newest: int) -> set[int]:
        """Let it read up to the newest event; return the beginnings of all blocks that it has seen."""
        wait_until(lambda: self.last > newest)
        self._enough = True
        self._work.finish()
        return {first for first, _ in self.seen}


def test_three_servers_and_eight_senders_at_once(
    cluster: Cluster, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """Readers with AFTER miss nothing: those of each server, and bare ones on the primary and on the standby."""
    name = cluster.new_database()
    url = cluster.url(name)
    servers = [start_server("--lanes", "1", "--standbys", "1", url=url) for _ in range(3)]
    account = Account()
    readers = [Reading(server.port, "t AFTER 0", [account]) for server in servers]
    pollers = [Poller(server, name) for server in cluster.servers]
    loads = [
        Load(account, server.port, senders, f"s{number}c", again=3)
        for number, (server, senders) in enumerate(zip(servers, (3, 3, 2), strict=True))
    ]
    for load in loads:
        load.wait_for_acks(EVENTS)
    for load in loads:
        load.stop()
    for load in loads:
        load.finish()
    newest = max(account.acked.values())
    for reader in readers:
        reader.wait_for(newest)
        reader.close()
    verdicts = [reading.verify(reader, [account]) for reader in readers]
    in_lane = {first for (first,) in cluster.primary.rows("SELECT first FROM lane_0.blocks", name)}
    for poller in pollers:
        assert in_lane - poller.finish(newest) == set()
    verdict = account.verify(servers[0])
    assert verdict.sent == verdict.stored
    for server in servers:
        assert server.stop() == 0
    figures = reading.total(verdicts)
    record_figures("three servers, eight senders", **{**verdict.figures, "delivered": figures["delivered"]})


def test_one_event_through_three_servers_at_once_is_stored_once(
    cluster: Cluster, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """Each event goes to all three at the same moment: one says stored, two say duplicate, all with the same seq."""
    url = cluster.url(cluster.new_database())
    servers = [start_server("--standbys", "1", url=url) for _ in range(3)]
    lines = [event(f"e{number}", f"t{number % 7}") for number in range(2_000)]
    replies: dict[int, list[tuple[str, int]]] = {}
    together = threading.Barrier(3)

    def send(server: ServerProcess) -> None:
        with Peer(server.port) as peer:
            told = replies.setdefault(server.port, [])
            for start in range(0, len(lines), 100):
                together.wait(60)
                peer.send(b"".join(lines[start : start + 100]))
                told += [(reply["status"], reply["seq"]) for reply in peer.replies(100)]

    work = [Background(lambda server=server: send(server)) for server in servers]  # type: ignore[misc]
    for one in work:
        one.finish()
    for told in zip(*replies.values(), strict=True):
        assert sorted(status for status, _ in told) == ["duplicate", "duplicate", "stored"]
        assert len({seq for _, seq in told}) == 1
    assert sum(len(servers[0].listed(f"t{number}")) for number in range(7)) == len(lines)
    record_figures("each event through three servers", sent=3 * len(lines), stored=len(lines))


def test_a_plain_sequence_lets_a_reader_miss_rows(cluster: Cluster, record_figures: RecordFigures) -> None:
    """The control of both tests above: a sequence gives a number out before its commit, and a reader passes it."""
    name = cluster.new_database()
    primary = cluster.primary
    primary.ask("CREATE TABLE plain (seq bigserial PRIMARY KEY, n int)", name)
    with primary.connect(name) as slow, primary.connect(name) as quick, primary.connect(name) as reader:

        def read(after: int) -> list[int]:
            rows = reader.execute("SELECT seq FROM plain WHERE seq > %s ORDER BY seq", [after])
            return [seq for (seq,) in rows]

        slow.execute("BEGIN")
        slow.execute("INSERT INTO plain (n) VALUES (1)")
        quick.execute("INSERT INTO plain (n) VALUES (2)")
        assert read(after=0) == [2]
        slow.execute("COMMIT")
        assert read(after=2) == []
        assert read(after=0) == [1, 2]
    record_figures("plain sequence (control)", stored=2, lost=1)


def test_readers_of_another_server_hear_at_once(
    cluster: Cluster, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """Of the events that one server acks, another delivers 99 % within 0.25 s."""
    url = cluster.url(cluster.new_database())
    one, other = (start_server("--standbys", "1", url=url) for _ in range(2))
    account = Account()
    delays_s = []
    with Peer(one.port) as sender, Peer(other.port) as reader:
        reader.ask(b"SUBSCRIBE t\n")
        for number in range(100):
            name = f"e{number}"
            account.heard(name, sender.ask(account.line(name)))
            acked = time.monotonic()
            while (found := reader.reply())["status"] != "event":
                pass
            delays_s.append(time.monotonic() - acked)
            assert found["event"]["event_id"] == name
    p99 = sorted(delays_s)[98]
    assert p99 < SLACK * 0.25
    record_figures("ack to delivery on another server", rounds=100, recovery_s=p99)
