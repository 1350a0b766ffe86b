"""Other programs at the same database: a reader that does not let go, a writer that holds the lock."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from itertools import count

import pytest

from aggregator.key_filter import FILTER_BYTES
from tests.checker import Ledger, Sender, check_database
from tests.faults.record import RecordFigures
from tests.faults.sizes import HELD_S, LOCKED_S
from tests.server_process import ServerProcess, wait_until
from tests.wire import Peer, exchange

WAL_BYTES = 64 << 20
"""What the WAL is cut to when it starts anew (its limit on disk, not the one above which nothing is stored)."""


def test_a_reader_that_does_not_let_go_holds_up_no_ack(server: ServerProcess, record_figures: RecordFigures) -> None:
    """T14: a snapshot is held under load: acks go on, HEALTH shows the WAL, and within 10 s of its end it is small."""
    ledger = Ledger()
    exchange(server.port, ledger.line("first"))
    with contextlib.closing(sqlite3.connect(f"{server.db.as_uri()}?mode=ro", uri=True, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        ends = time.monotonic() + HELD_S
        largest = slowest_s = 0.0
        with Peer(server.port) as peer:
            for number in count():
                names = [f"e{number}-{i}" for i in range(50)]
                lines = b"".join([ledger.line(name, f'{{"x":"{"x" * 2000}"}}') for name in names])
                started = time.monotonic()
                peer.send(lines)
                for name in names:
                    ledger.heard(name, peer.reply())
                slowest_s = max(slowest_s, time.monotonic() - started)
                largest = max(largest, server.ask("HEALTH")["checks"]["wal_bytes"])
                if time.monotonic() > ends:
                    break
                time.sleep(0.05)  # a load that lasts a minute without reaching the WAL's limit
    assert slowest_s < 1
    assert largest > 4 << 20
    released = time.monotonic()
    wait_until(lambda: server.ask("HEALTH")["health"] == "healthy", 10)
    exchange(server.port, ledger.line("after"))  # the WAL starts anew, and is cut, when something is written
    wait_until(lambda: server.ask("HEALTH")["checks"]["wal_bytes"] <= WAL_BYTES, 10)
    recovered_s = time.monotonic() - released
    assert not ledger.errors
    verdict = ledger.verify(server)
    assert server.stop() == 0
    check_database(server.db)
    record_figures(
        "a reader holds a snapshot", **verdict.figures, held_s=HELD_S, slowest_50_acks_s=slowest_s,
        wal_bytes=largest, recovery_s=recovered_s,
    )  # fmt: skip


@pytest.mark.parametrize("locked_s", [3, LOCKED_S])
def test_a_writer_that_holds_the_lock_delays_acks_and_fails_none(
    server: ServerProcess, locked_s: int, record_figures: RecordFigures
) -> None:
    """T15: ``BEGIN IMMEDIATE`` by another program: no error for anybody, PING answered, senders wait, all recovers."""
    ledger = Ledger()
    exchange(server.port, ledger.line("before"))
    pings_s: list[float] = []
    with contextlib.closing(sqlite3.connect(server.db, isolation_level=None)) as other, Peer(server.port) as admin:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        senders = [Sender(ledger, server.port, f"c{i}", in_flight=10_000) for i in range(4)]
        wait_until(lambda: server.ask("HEALTH")["health"] == "degraded")
        while time.monotonic() - started < locked_s:
            asked = time.monotonic()
            assert admin.ask(b"PING\n")["pong"]
            pings_s.append(time.monotonic() - asked)
            time.sleep(0.01)  # about a hundred samples a second
        stats = server.ask("STATS")
        assert stats["stored_total"] == 1
        assert stats["queue_events"] <= 30_000 + 4 * 7500
        rss_bytes = server.rss_bytes
        for sender in senders:
            sender.stop()
        released = time.monotonic()
        other.execute("COMMIT")
    for sender in senders:
        sender.join(30)
    wait_until(lambda: server.ask("HEALTH")["health"] == "healthy")
    recovered_s = time.monotonic() - released
    ping_p99_s = sorted(pings_s)[int(0.99 * (len(pings_s) - 1))]
    assert not ledger.errors
    verdict = ledger.verify(server)
    record_figures(
        f"a writer holds the lock for {locked_s} s", **verdict.figures,
        ping_p99_s=ping_p99_s, rss_bytes=rss_bytes, recovery_s=recovered_s,
    )  # fmt: skip
    assert rss_bytes < (128 << 20) + FILTER_BYTES
    assert ping_p99_s <= 0.02
    assert server.stop() == 0
    check_database(server.db)
