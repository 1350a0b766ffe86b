"""The process dies at any moment: under load, between a commit and its acks, while stopping, with a large WAL."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.harness.account import Account
from tests.harness.load_client import Load, LoadClient
from tests.harness.other_program import holding_a_snapshot
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import DRAIN_KILL_ROUNDS, GAP_ROUNDS, KILL_ROUNDS, SLACK
from tests.harness.strace import has_strace, inject
from tests.harness.wire import exchange

RECOVERY_S = 2.0
"""From the start of the next server to its first answer."""


def restart_in_time(server: ServerProcess) -> float:
    """Start it again; return the seconds until it reports that it is healthy."""
    started = time.monotonic()
    server.restart()
    assert server.ask("HEALTH")["health"] == "healthy"
    recovered_s = time.monotonic() - started
    assert recovered_s < SLACK * RECOVERY_S
    return recovered_s


def test_kill_9_under_load_loses_and_doubles_nothing(
    server: ServerProcess, moments: random.Random, record_figures: RecordFigures
) -> None:
    """T1: eight pipelining clients, killed at random 5–500 ms after each of them has twenty acks."""
    account = Account()
    recoveries_s = []
    for number in range(KILL_ROUNDS):
        load = Load(account, server.port, 8, f"r{number}c", in_flight=50)
        load.wait_for_acks(20)
        time.sleep(moments.uniform(0.005, 0.5))  # the moment of the fault, not a wait for anything
        server.kill()
        load.finish()
        recoveries_s.append(restart_in_time(server))
    verdict = account.verify_and_stop(server)
    record_figures("kill -9 under load", rounds=KILL_ROUNDS, **verdict.figures, recovery_s=max(recoveries_s))


@pytest.mark.root
@has_strace
def test_what_was_stored_and_not_acked_is_a_duplicate_when_it_is_sent_again(
    server: ServerProcess, record_figures: RecordFigures
) -> None:
    """T12: the server dies at the n-th write of its event loop; the acks are among these writes."""
    account = Account()
    in_the_gap = 0
    for number in range(GAP_ROUNDS):
        with inject(server, f"write,writev,sendto,sendmsg:signal=KILL:when={1 + number}"):
            client = LoadClient(account, server.port, f"r{number}", in_flight=20)
            assert server.wait() == -signal.SIGKILL
            client.finish()
        server.restart()
        stored = server.stored("t")
        unacked = [name for name in account.sent if name in stored and name not in account.acked]
        in_the_gap += len(unacked)
        for name in unacked:
            (reply,) = exchange(server.port, account.sent[name])
            assert (reply["status"], reply["seq"]) == ("duplicate", stored[name]["seq"])
            account.heard(name, reply)
    assert in_the_gap > 0, "no round died between a commit and its acks"
    verdict = account.verify_and_stop(server)
    record_figures("death between commit and ack", rounds=GAP_ROUNDS, **verdict.figures, stored_not_acked=in_the_gap)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_kill_9_while_it_stops_loses_nothing(
    start_server: StartServer, loop: str, moments: random.Random, record_figures: RecordFigures
) -> None:
    """T44: SIGKILL 0–500 ms after SIGTERM, under load. (A second SIGINT: test_durability.py.)"""
    server = start_server(loop=loop)
    account = Account()
    killed = 0
    recoveries_s = []
    for number in range(DRAIN_KILL_ROUNDS):
        load = Load(account, server.port, 8, f"r{number}c")
        load.wait_for_acks()
        server.signal(signal.SIGTERM)
        time.sleep(moments.choice((0.02, 0.5)) * moments.random())  # most drains take less than 100 ms
        server.signal(signal.SIGKILL)
        killed += server.wait() == -signal.SIGKILL
        load.finish()
        recoveries_s.append(restart_in_time(server))
    assert killed > 0, "each one had stopped before it was killed"
    verdict = account.verify_and_stop(server)
    record_figures(
        f"kill -9 after SIGTERM ({loop})",
        rounds=DRAIN_KILL_ROUNDS, killed=killed, **verdict.figures, recovery_s=max(recoveries_s),
    )  # fmt: skip


def test_a_large_wal_does_not_hold_up_the_next_start(server: ServerProcess, record_figures: RecordFigures) -> None:
    """T18: kill -9 with 64 MiB in the WAL, because a reader prevented checkpoints: first ack within 5 s."""
    account = Account()
    exchange(server.port, account.line("first"))
    with holding_a_snapshot(server.db):
        client = LoadClient(account, server.port, "large", payload=f'{{"n":"NAME","x":"{"x" * 8000}"}}')
        wait_until(lambda: server.ask("HEALTH")["checks"]["wal_bytes"] > 64 << 20, 60)
        server.kill()
        client.finish()
    wal_bytes = server.db.with_name("events.db-wal").stat().st_size
    assert wal_bytes > 64 << 20
    started = time.monotonic()
    server.restart()
    (reply,) = exchange(server.port, account.line("after"))
    first_ack_s = time.monotonic() - started
    account.heard("after", reply)
    assert first_ack_s < SLACK * 5
    verdict = account.verify_and_stop(server)
    record_figures("start with a large WAL", **verdict.figures, wal_bytes=wal_bytes, recovery_s=first_ack_s)
