"""The process dies at any moment: under load, between a commit and its acks, while it stops, with a large WAL."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import time

import pytest

from tests.checker import Ledger, Sender, check_database
from tests.conftest import StartServer
from tests.faults.record import RecordFigures
from tests.faults.sizes import DRAIN_KILL_ROUNDS, GAP_ROUNDS, KILL_ROUNDS
from tests.faults.tracer import has_strace, inject
from tests.server_process import ServerProcess, wait_until
from tests.wire import exchange

RECOVERY_S = 2.0
"""From the start of the next server to its first answer."""


def restart_in_time(server: ServerProcess) -> float:
    """Start it again; the seconds until it says that it is healthy."""
    started = time.monotonic()
    server.restart()
    assert server.ask("HEALTH")["health"] == "healthy"
    recovered_s = time.monotonic() - started
    assert recovered_s < RECOVERY_S
    return recovered_s


def test_kill_9_under_load_loses_and_doubles_nothing(
    server: ServerProcess, moments: random.Random, record_figures: RecordFigures
) -> None:
    """T1: eight pipelining clients, killed at random 5–500 ms after each of them has an ack."""
    ledger = Ledger()
    recoveries_s = []
    for number in range(KILL_ROUNDS):
        senders = [Sender(ledger, server.port, f"r{number}c{i}", in_flight=50) for i in range(8)]
        wait_until(lambda senders=senders: all(sender.acks for sender in senders))  # type: ignore[misc]
        time.sleep(moments.uniform(0.005, 0.5))  # the moment of the fault, not a wait for anything
        server.kill()
        for sender in senders:
            sender.join(30)
        recoveries_s.append(restart_in_time(server))
    assert len(ledger.acked) > 100 * KILL_ROUNDS
    verdict = ledger.verify(server)
    assert server.stop() == 0
    check_database(server.db)
    record_figures("kill -9 under load", rounds=KILL_ROUNDS, **verdict.figures, recovery_s=max(recoveries_s))


@pytest.mark.root
@has_strace
def test_what_was_stored_and_not_acked_is_a_duplicate_when_it_is_sent_again(
    server: ServerProcess, record_figures: RecordFigures
) -> None:
    """T12: death at the n-th time that the event loop's thread is about to write: to a client, an ack among others."""
    ledger = Ledger()
    in_the_gap = 0
    for number in range(GAP_ROUNDS):
        with inject(server, f"write,writev,sendto,sendmsg:signal=KILL:when={1 + number}"):
            sender = Sender(ledger, server.port, f"r{number}", in_flight=20)
            assert server.wait() == -signal.SIGKILL
            sender.join(30)
        server.restart()
        stored = server.stored("t")
        unacked = [name for name in ledger.sent if name in stored and name not in ledger.acked]
        in_the_gap += len(unacked)
        for name in unacked:
            (reply,) = exchange(server.port, ledger.sent[name])
            assert (reply["status"], reply["seq"]) == ("duplicate", stored[name]["seq"])
            ledger.heard(name, reply)
    assert in_the_gap > 0, "no round died between a commit and its acks"
    verdict = ledger.verify(server)
    assert server.stop() == 0
    check_database(server.db)
    record_figures("death between commit and ack", rounds=GAP_ROUNDS, **verdict.figures, stored_not_acked=in_the_gap)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_kill_9_while_it_stops_loses_nothing(
    start_server: StartServer, loop: str, moments: random.Random, record_figures: RecordFigures
) -> None:
    """T44: SIGKILL 0–500 ms after SIGTERM, under load. (A second SIGINT: test_durability.py.)"""
    server = start_server(loop=loop)
    ledger = Ledger()
    killed = 0
    recoveries_s = []
    for number in range(DRAIN_KILL_ROUNDS):
        senders = [Sender(ledger, server.port, f"r{number}c{i}") for i in range(8)]
        wait_until(lambda senders=senders: all(sender.acks for sender in senders))  # type: ignore[misc]
        server.signal(signal.SIGTERM)
        time.sleep(moments.choice((0.02, 0.5)) * moments.random())  # most drains take less than 100 ms
        server.signal(signal.SIGKILL)
        killed += server.wait() == -signal.SIGKILL
        for sender in senders:
            sender.join(30)
        recoveries_s.append(restart_in_time(server))
    assert killed > 0, "each one had stopped before it was killed"
    verdict = ledger.verify(server)
    assert server.stop() == 0
    check_database(server.db)
    record_figures(
        f"kill -9 after SIGTERM ({loop})",
        rounds=DRAIN_KILL_ROUNDS, killed=killed, **verdict.figures, recovery_s=max(recoveries_s),
    )  # fmt: skip


def test_a_large_wal_does_not_hold_up_the_next_start(server: ServerProcess, record_figures: RecordFigures) -> None:
    """T18: kill -9 with 64 MiB in the WAL, which a reader has kept from the database: first ack within 5 s."""
    ledger = Ledger()
    exchange(server.port, ledger.line("first"))
    with contextlib.closing(sqlite3.connect(f"{server.db.as_uri()}?mode=ro", uri=True, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchall()  # from now on it needs the WAL as it is
        sender = Sender(ledger, server.port, "large", payload=f'{{"n":"NAME","x":"{"x" * 8000}"}}')
        wait_until(lambda: server.ask("HEALTH")["checks"]["wal_bytes"] > 64 << 20, 60)
        server.kill()
        sender.join(30)
    wal_bytes = server.db.with_name("events.db-wal").stat().st_size
    assert wal_bytes > 64 << 20
    started = time.monotonic()
    server.restart()
    (reply,) = exchange(server.port, ledger.line("after"))
    first_ack_s = time.monotonic() - started
    ledger.heard("after", reply)
    assert first_ack_s < 5
    verdict = ledger.verify(server)
    assert server.stop() == 0
    check_database(server.db)
    record_figures("start with a large WAL", **verdict.figures, wal_bytes=wal_bytes, recovery_s=first_ack_s)
