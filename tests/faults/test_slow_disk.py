"""A disk that is slow, or never answers: what waits for it, what does not, and how much memory that costs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from aggregator.storage.sqlite.database import CACHE_KIB
from tests.harness.account import Account
from tests.harness.background import in_background
from tests.harness.load_client import Load
from tests.harness.polite_client import percentile
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import SLACK, SLOW_COMMITS, STALL_S
from tests.harness.strace import has_strace, inject
from tests.harness.wire import Peer, exchange

MEMORY_BYTES = (128 << 20) + (CACHE_KIB << 10)

pytestmark = [pytest.mark.root, has_strace]


@pytest.mark.parametrize("delay_s", [0.2, 2.0])
def test_a_slow_disk_slows_acks_and_nothing_else(
    server: ServerProcess, delay_s: float, record_figures: RecordFigures
) -> None:
    """T8: an ack waits for the running commit and for its own commit, of one sync each; HEALTH and PING do not wait.

    If they did, their median would be half of a sync.
    """
    account = Account()
    exchange(server.port, account.line("before"))  # the first commit of a new WAL syncs twice
    acks_s: list[float] = []
    health_s: list[float] = []
    pings_s: list[float] = []

    def client(name: str) -> None:
        with Peer(server.port) as peer:
            for number in range(SLOW_COMMITS):
                event_id = f"{name}-{number}"
                started = time.monotonic()
                account.heard(event_id, peer.ask(account.line(event_id)))
                acks_s.append(time.monotonic() - started)

    with inject(server, f"fdatasync:delay_enter={delay_s * 1e6:.0f}", server.db.with_name("events.db-wal")):
        clients = [in_background(partial(client, f"c{i}")) for i in range(8)]
        with Peer(server.port) as admin:
            while any(one.is_alive() for one in clients):
                for command, times_s in ((b"HEALTH\n", health_s), (b"PING\n", pings_s)):
                    started = time.monotonic()
                    assert admin.ask(command)["status"] == "ok"
                    times_s.append(time.monotonic() - started)
                time.sleep(0.01)  # about a hundred samples a second, not a flood
        for one in clients:
            one.finish()
    assert not account.errors
    verdict = account.verify(server)
    record_figures(
        f"fdatasync +{delay_s} s", rounds=len(acks_s), **verdict.figures, ack_p99_s=percentile(acks_s, 0.99),
        health_p99_s=percentile(health_s, 0.99), ping_p99_s=percentile(pings_s, 0.99),
    )  # fmt: skip
    assert min(acks_s) >= delay_s, "each ack waited for a sync"
    assert percentile(acks_s, 0.99) <= SLACK * (delay_s + delay_s)
    assert percentile(health_s, 0.99) <= SLACK * 0.05
    assert percentile(pings_s, 0.99) <= SLACK * 0.02
    assert percentile(health_s + pings_s, 0.5) < delay_s / 4


def test_sigterm_with_a_disk_that_does_not_come_back_ends_in_time_and_acks_nothing(
    start_server: StartServer, record_figures: RecordFigures
) -> None:
    """T45: fdatasync hangs for a minute: exit code 1 at the deadline, drain timeout + 2 s; no ack, and nothing lost.

    A process ends with its last thread, and a thread in a system call cannot end before the call returns. So the test
    waits for the end of the main thread, and then lets the call return.
    """
    server = start_server("--drain-timeout", "1")
    account = Account()
    (reply,) = exchange(server.port, account.line("before"))
    account.heard("before", reply)
    with inject(server, "fdatasync:delay_enter=60000000", server.db.with_name("events.db-wal")):
        with Peer(server.port) as peer:
            peer.send(account.line("stuck"))
            wait_until(lambda: server.ask("STATS")["received"] == 2)
            started = time.monotonic()
            server.signal(signal.SIGTERM)
            assert peer.raw_rest() == b"", "it is neither stored nor refused, as far as anybody knows"
        wait_until(lambda: Path(f"/proc/{server.pid}/stat").read_text().rpartition(") ")[2][0] == "Z")
        ended_s = time.monotonic() - started
    assert server.wait() == 1
    assert ended_s < SLACK * (1 + 2)
    assert "a commit does not end" in server.log
    server.restart()
    verdict = account.verify_and_stop(server)
    record_figures("SIGTERM with a stuck disk", **verdict.figures, ended_s=ended_s)


@pytest.fixture
def memory_cgroup() -> Iterator[tuple[str, ...]]:
    """Words before a command that limit it to MEMORY_BYTES, page cache included; empty where that is not possible."""
    for parent, limits in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = parent / f"aggregator-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / limits).write_text(str(MEMORY_BYTES))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        wait_until(lambda group=group: not (group / "cgroup.procs").read_text())  # type: ignore[misc]
        group.rmdir()
        return
    print("no memory cgroup here: the resident size alone is looked at")
    yield ()


def test_a_stalled_disk_stops_the_senders_and_memory_stays_bounded(
    memory_cgroup: tuple[str, ...], start_server: StartServer, record_figures: RecordFigures
) -> None:
    """T40: fdatasync +5 s, 50 flooders: no OOM, the queue bounded, senders wait, RSS below 96 MiB plus SQLite's cache.

    In a memory group of 128 MiB the server was killed: not during the stall (71 MiB), but at full speed after it, when
    SQLite's page cache fills. So the size of that cache is added to the group's limit, and to the bound of RSS, because
    each commit of the stall fills some of the cache. The queue may exceed its limit by one read of each client, because
    events are read before they are counted.
    """
    server = start_server(prefix=memory_cgroup)
    account = Account()
    exchange(server.port, account.line("before"))
    samples: list[tuple[int, int, int]] = []
    with inject(server, "fdatasync:delay_enter=5000000", server.db.with_name("events.db-wal")):
        load = Load(account, server.port, 50, in_flight=2_000)
        wait_until(lambda: server.ask("STATS")["queue_events"] >= 10_000, 60)
        ends = time.monotonic() + STALL_S
        while time.monotonic() < ends:
            stats = server.ask("STATS")
            samples.append((server.rss_bytes, stats["queue_events"], stats["received"]))
            time.sleep(0.1)
    load.stop()
    load.finish()
    rss = [sample[0] for sample in samples]
    queued = max(sample[1] for sample in samples)
    assert server.process.poll() is None
    verdict = account.verify_and_stop(server)
    record_figures(
        "stalled disk, 50 flooders", **verdict.figures, stalled_s=STALL_S, rss_bytes=max(rss), queue_events=queued
    )
    assert max(rss) < (96 << 20) + (CACHE_KIB << 10)
    assert queued < 10_000 + 50 * 2500
