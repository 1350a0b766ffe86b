"""System calls on the database's files fail: each of them, once and permanently, while the server runs and starts.

A call that strace makes fail is not carried out, so earlier writes stay in the page cache, unsynced. After a real write
error a kernel does something else: see test_write_errors.py.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from pathlib import Path

import pytest

from tests.harness.account import Account, Verdict, total
from tests.harness.database_check import check_database
from tests.harness.load_client import Load, LoadClient
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import EIO_STEP, SLACK, SWEEP_STEP
from tests.harness.strace import has_strace, inject, injecting
from tests.harness.wire import Json, Peer, exchange

pytestmark = [pytest.mark.root, has_strace]

ENDS_S = 1.0
"""From the first reply that says "storage" to the end of the process."""

HANGS_S = 60.0
"""A server that takes longer than this to end counts as hanging."""


def wal_of(server: ServerProcess) -> Path:
    return server.db.with_name("events.db-wal")


def files_of(db: Path) -> list[Path]:
    """Every file that a start, a commit, a checkpoint or a stop touches."""
    return [db.parent, db, *(db.with_name(db.name + suffix) for suffix in ("-wal", "-shm", "-journal", ".lock"))]


def send_until_refused(server: ServerProcess, account: Account, prefix: str, most: int = 40) -> list[str]:
    """Send events one by one until a reply is not an ack, and then three more; return the statuses.

    A server whose store has failed reports that even on a connection that has not sent anything yet; that line names
    no event.
    """
    names = iter([f"{prefix}-{number}" for number in range(most)])
    statuses: list[str] = []

    def take(name: str, reply: Json) -> None:
        if "event_id" in reply:
            account.heard(name, reply)
        else:
            assert reply["code"] == "storage", reply
        statuses.append(reply["status"])

    with contextlib.suppress(OSError), Peer(server.port) as peer:
        for name in names:
            take(name, peer.ask(account.line(name)))
            if statuses[-1] != "stored":
                break
        behind = list(islice(names, 3))
        peer.send(account.lines(behind))
        peer.half_close()
        for name, reply in zip(behind, peer.rest(), strict=False):
            take(name, reply)
    return statuses


@pytest.mark.parametrize("when", range(1, 31, EIO_STEP))
def test_a_sync_of_the_wal_that_fails_once_ends_all_acks(
    server: ServerProcess, when: int, record_figures: RecordFigures
) -> None:
    """T5: no ack for that batch or any later one, exit code 1 within a second, and after a restart LOST = 0."""
    account = Account()
    with inject(server, f"fdatasync:error=EIO:when={when}", wal_of(server)):
        statuses = send_until_refused(server, account, "e")
        failed = time.monotonic()
        assert server.wait() == 1
        ended_s = time.monotonic() - failed
    acks = statuses.count("stored")
    assert statuses == ["stored"] * acks + ["error"] * (len(statuses) - acks)
    assert acks < when, "each ack has a sync of its own"
    assert set(account.errors.values()) == {"storage"}
    assert ended_s < SLACK * ENDS_S
    assert "the store has failed: disk I/O error (SQLITE_IOERR_FSYNC)" in server.log
    assert "Traceback" not in server.log
    started = time.monotonic()
    server.restart()
    recovered_s = time.monotonic() - started
    verdict = account.verify_and_stop(server)
    record_figures(f"EIO at WAL sync {when}", **verdict.figures, ended_s=ended_s, recovery_s=recovered_s)


def test_syncs_of_the_wal_that_always_fail_are_never_acked_whoever_starts_the_server_again(
    server: ServerProcess, record_figures: RecordFigures
) -> None:
    """T6: as under a supervisor, ten lives on a disk that syncs nothing: no ack; each ends on its own, in few lines."""
    account = Account()
    assert set(send_until_refused(server, account, "before", 10)) == {"stored"}
    assert server.stop() == 0
    server.prefix = injecting("fdatasync:error=EIO", wal_of(server))
    slowest_s = most_lines = 0.0
    for life in range(10):
        seen = server.log.count("\n")
        if server.try_to_start():
            assert set(send_until_refused(server, account, f"life{life}")) <= {"error"}  # none: it has just ended
        failed = time.monotonic()
        assert server.wait() == 1
        slowest_s = max(slowest_s, time.monotonic() - failed)
        most_lines = max(most_lines, server.log.count("\n") - seen)
    assert slowest_s < SLACK * ENDS_S
    assert most_lines <= 5
    assert "Traceback" not in server.log
    server.prefix = ()
    server.start()
    verdict = account.verify_and_stop(server)
    record_figures("EIO at each WAL sync", rounds=10, **verdict.figures, ended_s=slowest_s, log_lines=most_lines)


def calls() -> Iterator[int]:
    """The numbers of the calls that are to fail: 1 to 3, then all, or only every SWEEP_STEP-th where time is short."""
    yield from (1, 2, 3)
    yield from count(4, SWEEP_STEP)


@dataclass
class Sweep:
    """For each failing call, one life of a server with the failure and one without; and the results."""

    new_server: StartServer
    prepare: Callable[[Path], Account]  # makes the database's folder
    verdicts: list[Verdict] = field(default_factory=list)
    refused_to_start: int = 0
    failed: int = 0
    slowest_s: float = 0.0

    def run(self, folder: Path, fault: str, times: str) -> None:
        for number in calls():
            db, trace = folder / str(number) / "events.db", folder / f"{number}.trace"
            account = self.prepare(db)
            when = f"{number}+" if times == "for ever" else f"{number}"
            server = self.new_server(db=db, prefix=injecting(f"{fault}:when={when}", *files_of(db), trace=trace))
            self._live(server, account)
            injected = "(INJECTED)" in trace.read_text()

            server.prefix = ()
            server.start()
            self.verdicts.append(account.verify(server))
            assert server.stop() == 0
            check_database(db)
            if not injected:
                assert number > 1
                return

    def _live(self, server: ServerProcess, account: Account) -> None:
        ready = server.try_to_start()
        if ready:
            for group in range(3):
                send_until_refused(server, account, f"group{group}", 4)
            if "storage" not in account.errors.values():  # else it ends, and may log a signal that comes too late
                server.signal(signal.SIGTERM)
        started = time.monotonic()
        code = server.wait(HANGS_S)
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        assert code in (0, 1)
        assert "Traceback" not in server.log
        if not ready:
            assert code == 1
            assert re.fullmatch(r"aggregator: .+\n", server.log), server.log
        self.refused_to_start += not ready
        self.failed += ready and code == 1

    @property
    def figures(self) -> dict[str, float]:
        return {
            "rounds": len(self.verdicts), "refused_to_start": self.refused_to_start, "failed": self.failed,
            **total(self.verdicts), "slowest_end_s": self.slowest_s,
        }  # fmt: skip


def an_empty_folder(db: Path) -> Account:
    db.parent.mkdir(parents=True)
    return Account()


@pytest.mark.parametrize("times", ["once", "for ever"])
@pytest.mark.parametrize(
    "fault",
    [
        "pwrite64:error=EIO", "pwrite64:error=ENOSPC", "fdatasync:error=EIO", "ftruncate:error=EIO", "openat:error=EIO",
        "pread64:error=EIO",
    ],
)  # fmt: skip
def test_whichever_call_fails_nothing_acked_is_lost(
    new_server: StartServer, tmp_path: Path, fault: str, times: str, record_figures: RecordFigures
) -> None:
    """T10: the n-th call of each thread fails, from n = 1 up to the first life in which no call failed.

    Each life makes the database, commits events and ends with the last checkpoint. LOST = 0, the file is sound, nothing
    hangs, and a server that cannot start reports it in one line.
    """
    sweep = Sweep(new_server, an_empty_folder)
    sweep.run(tmp_path, fault, times)
    record_figures(f"{fault} {times}", **sweep.figures)


@pytest.mark.parametrize("times", ["once", "for ever"])
@pytest.mark.parametrize(
    "fault",
    ["pread64:error=EIO", "pwrite64:error=ENOSPC", "ftruncate:error=ENOSPC", "openat:error=EIO", "mmap:error=ENOMEM"],
)
def test_whichever_call_fails_in_the_recovery_from_a_crash_nothing_acked_is_lost(
    start_server: StartServer,
    new_server: StartServer,
    tmp_path: Path,
    fault: str,
    times: str,
    record_figures: RecordFigures,
) -> None:
    """T11: kill -9, then a start in which the n-th call fails, then a clean start: LOST = 0."""
    crashed = start_server()
    before = Account()
    client = LoadClient(before, crashed.port, "before")
    client.wait_for_acks(200)
    crashed.kill()
    client.finish()

    def as_the_crash_left_it(db: Path) -> Account:
        shutil.copytree(crashed.db.parent, db.parent)
        return deepcopy(before)

    sweep = Sweep(new_server, as_the_crash_left_it)
    sweep.run(tmp_path, fault, times)
    assert sweep.refused_to_start > 0, "no call failed that the start depends on"
    record_figures(f"kill -9, then {fault} {times}", **sweep.figures)


def test_a_checkpoint_that_always_fails_is_shown_and_the_wal_stays_below_its_limit(
    start_server: StartServer, record_figures: RecordFigures
) -> None:
    """T7: HEALTH is degraded within 10 s; at the WAL's limit nothing is stored; once the disk is mended, acks go on.

    The limit is checked between batches, so one batch may exceed it: here, everything that the clients have in flight.
    """
    limit, in_flight = 16 << 20, 2 * 200
    server = start_server("--wal-limit-bytes", str(limit))
    account = Account()
    exchange(server.port, account.line("first"))
    with inject(server, "fdatasync:error=EIO", server.db):
        started = time.monotonic()
        load = Load(account, server.port, 2, payload=f'{{"x":"NAME {"x" * 8000}"}}')
        wait_until(lambda: server.ask("HEALTH")["checks"]["checkpoint"] == "disk I/O error", SLACK * 10)
        shown_s = time.monotonic() - started
        assert server.ask("HEALTH")["health"] == "degraded"
        wait_until(lambda: "the WAL has reached its limit" in server.ask("HEALTH")["checks"]["storage"])
        before = server.ask("STATS")
        for _ in range(2):
            wait_until(partial(server.has_checkpointed_since, time.monotonic()))  # it is retried again and again
        after = server.ask("STATS")
        assert before["stored_total"] == after["stored_total"], "nothing is stored"
        assert limit // 4 < after["wal_bytes"] < limit + in_flight * 3 * 4096  # an estimate, more likely too high
        assert server.log.count("\n") < 10
    mended = time.monotonic()
    load.wait_for_acks()
    recovered_s = time.monotonic() - mended
    load.stop()
    load.finish()
    wait_until(lambda: server.ask("HEALTH")["health"] == "healthy")
    assert not account.errors
    verdict = account.verify_and_stop(server)
    record_figures(
        "EIO at each checkpoint", **verdict.figures,
        shown_s=shown_s, wal_bytes=after["wal_bytes"], recovery_s=recovered_s,
    )  # fmt: skip
