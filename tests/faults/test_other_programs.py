"""Other programs that use the same database: a reader that does not let go, and a writer that holds the lock."""

from __future__ import annotations

import time
from itertools import count

import pytest

from aggregator.storage.sqlite.key_filter import FILTER_BYTES
from tests.harness.account import Account
from tests.harness.load_client import Load
from tests.harness.other_program import holding_a_snapshot, holding_the_lock
from tests.harness.polite_client import percentile
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess
from tests.harness.sizes import HELD_S, LOCKED_S, SLACK
from tests.harness.wire import Peer, exchange

WAL_BYTES = 64 << 20
"""The size to which the WAL's file is cut when it starts over; not the limit above which nothing is stored."""

TURNS = 60
"""At least so many times 100 KB are written while the snapshot is held."""


def test_a_reader_that_does_not_let_go_holds_up_no_ack(server: ServerProcess, record_figures: RecordFigures) -> None:
    """T14: a snapshot is held under load. Acks go on, HEALTH shows the WAL, and 10 s after its end the WAL is small."""
    account = Account()
    exchange(server.port, account.line("first"))
    with holding_a_snapshot(server.db):
        ends = time.monotonic() + HELD_S
        largest = slowest_s = 0.0
        with Peer(server.port) as peer:
            for number in count():
                names = [f"e{number}-{i}" for i in range(50)]
                lines = account.lines(names, f'{{"x":"{"x" * 2000}"}}')
                started = time.monotonic()
                peer.send(lines)
                for name in names:
                    account.heard(name, peer.reply())
                slowest_s = max(slowest_s, time.monotonic() - started)
                largest = max(largest, server.ask("HEALTH")["checks"]["wal_bytes"])
                if number >= TURNS and time.monotonic() > ends:
                    break
                time.sleep(0.05)  # a load that lasts a minute without reaching the WAL's limit
    assert slowest_s < SLACK * 1
    assert largest > 4 << 20
    released = time.monotonic()
    wait_until(lambda: server.ask("HEALTH")["health"] == "healthy", 60)
    exchange(server.port, account.line("after"))  # the next write starts the WAL over, and cuts its file
    wait_until(lambda: server.ask("HEALTH")["checks"]["wal_bytes"] <= WAL_BYTES, 60)
    recovered_s = time.monotonic() - released
    assert not account.errors
    verdict = account.verify_and_stop(server)
    record_figures(
        "a reader holds a snapshot", **verdict.figures, held_s=HELD_S, slowest_50_acks_s=slowest_s,
        wal_bytes=largest, recovery_s=recovered_s,
    )  # fmt: skip


@pytest.mark.parametrize("locked_s", [3, LOCKED_S])
def test_a_writer_that_holds_the_lock_delays_acks_and_fails_none(
    server: ServerProcess, locked_s: int, record_figures: RecordFigures
) -> None:
    """T15: another program holds ``BEGIN IMMEDIATE``: no client gets an error, PING is answered, senders wait."""
    account = Account()
    exchange(server.port, account.line("before"))
    pings_s: list[float] = []
    with Peer(server.port) as admin, holding_the_lock(server.db):
        started = time.monotonic()
        load = Load(account, server.port, 4, in_flight=10_000)
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
        load.stop()
        released = time.monotonic()
    load.finish()
    wait_until(lambda: server.ask("HEALTH")["health"] == "healthy")
    recovered_s = time.monotonic() - released
    ping_p99_s = percentile(pings_s, 0.99)
    assert not account.errors
    verdict = account.verify_and_stop(server)
    record_figures(
        f"a writer holds the lock for {locked_s} s", **verdict.figures,
        ping_p99_s=ping_p99_s, rss_bytes=rss_bytes, recovery_s=recovered_s,
    )  # fmt: skip
    assert rss_bytes < (128 << 20) + FILTER_BYTES
    assert ping_p99_s <= SLACK * 0.02
