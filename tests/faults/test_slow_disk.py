"""A disk that is slow, or does not come back at all: who waits, who does not, and what it costs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregator.store import CACHE_KIB
from tests.checker import Ledger, Sender, check_database
from tests.conftest import StartServer
from tests.faults.record import RecordFigures
from tests.faults.sizes import SLOW_COMMITS, STALL_S
from tests.faults.tracer import has_strace, inject
from tests.server_process import ServerProcess, wait_until
from tests.wire import Peer, exchange

MEMORY_BYTES = (128 << 20) + (CACHE_KIB << 10)

pytestmark = [pytest.mark.root, has_strace]


def percentile(times_s: list[float], part: float) -> float:
    return sorted(times_s)[int(part * (len(times_s) - 1))]


@pytest.mark.parametrize("delay_s", [0.2, 2.0])
def test_a_slow_disk_slows_acks_and_nothing_else(
    server: ServerProcess, delay_s: float, record_figures: RecordFigures
) -> None:
    """T8: an ack waits for the commit that is running and for its own, each of one sync; HEALTH and PING do not."""
    ledger = Ledger()
    exchange(server.port, ledger.line("before"))  # the first commit of a new WAL syncs twice
    acks_s: list[float] = []
    health_s: list[float] = []
    pings_s: list[float] = []

    def client(name: str) -> None:
        with Peer(server.port) as peer:
            for number in range(SLOW_COMMITS):
                event_id = f"{name}-{number}"
                started = time.monotonic()
                ledger.heard(event_id, peer.ask(ledger.line(event_id)))
                acks_s.append(time.monotonic() - started)

    with inject(server, f"fdatasync:delay_enter={delay_s * 1e6:.0f}", server.db.with_name("events.db-wal")):
        clients = [threading.Thread(target=client, args=(f"c{i}",), daemon=True) for i in range(8)]
        for thread in clients:
            thread.start()
        with Peer(server.port) as admin:
            while any(thread.is_alive() for thread in clients):
                for command, times_s in ((b"HEALTH\n", health_s), (b"PING\n", pings_s)):
                    started = time.monotonic()
                    assert admin.ask(command)["status"] == "ok"
                    times_s.append(time.monotonic() - started)
                time.sleep(0.01)  # about a hundred samples a second, not a flood
    assert not ledger.errors
    verdict = ledger.verify(server)
    record_figures(
        f"fdatasync +{delay_s} s", rounds=len(acks_s), **verdict.figures, ack_p99_s=percentile(acks_s, 0.99),
        health_p99_s=percentile(health_s, 0.99), ping_p99_s=percentile(pings_s, 0.99),
    )  # fmt: skip
    assert min(acks_s) >= delay_s, "each ack waited for a sync"
    assert percentile(acks_s, 0.99) <= 2 * (delay_s + delay_s)
    assert percentile(health_s, 0.99) <= 0.05
    assert percentile(pings_s, 0.99) <= 0.02


def test_sigterm_with_a_disk_that_does_not_come_back_ends_in_time_and_acks_nothing(
    start_server: StartServer, record_figures: RecordFigures
) -> None:
    """T45: fdatasync hangs for 30 s: exit code not 0 at the deadline, drain timeout + 2 s; no ack, and nothing lost.

    A process is gone when its last thread is, and the one in the call cannot be ended before that returns. So what is
    waited for is the end of the main thread; then the call is let go.
    """
    server = start_server("--drain-timeout", "1")
    ledger = Ledger()
    (reply,) = exchange(server.port, ledger.line("before"))
    ledger.heard("before", reply)
    with inject(server, "fdatasync:delay_enter=30000000", server.db.with_name("events.db-wal")):
        with Peer(server.port) as peer:
            peer.send(ledger.line("stuck"))
            wait_until(lambda: server.ask("STATS")["received"] == 2)
            started = time.monotonic()
            server.signal(signal.SIGTERM)
            assert peer.raw_rest() == b"", "it is neither stored nor refused, as far as anybody knows"
        wait_until(lambda: Path(f"/proc/{server.pid}/stat").read_text().rpartition(") ")[2][0] == "Z")
        ended_s = time.monotonic() - started
    assert server.wait() == 1
    assert ended_s < 1 + 2 + 1
    assert "a commit does not end" in server.log
    server.restart()
    verdict = ledger.verify(server)
    assert server.stop() == 0
    check_database(server.db)
    record_figures("SIGTERM with a stuck disk", **verdict.figures, ended_s=ended_s)


@pytest.fixture
def memory_cgroup() -> Iterator[tuple[str, ...]]:
    """Words before a command that give it MEMORY_BYTES, page cache included; none where that cannot be had."""
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
    """T40: fdatasync +5 s, 50 flooders: no OOM, the queue bounded, senders wait, RSS below 96 MiB and SQLite's cache.

    The memory group got 128 MiB at first, and the server was killed in it: not in the stall (71 MiB), but at full speed
    after it, when SQLite's page cache fills. So it has that on top, and so has the figure for RSS: each commit of the
    stall fills some of it too. And what one read of each client brings may come on top of the queue's limit: it is read
    before it is counted.
    """
    server = start_server(prefix=memory_cgroup)
    ledger = Ledger()
    exchange(server.port, ledger.line("before"))
    samples: list[tuple[int, int, int]] = []
    with inject(server, "fdatasync:delay_enter=5000000", server.db.with_name("events.db-wal")):
        senders = [Sender(ledger, server.port, f"c{i}", in_flight=2_000) for i in range(50)]
        wait_until(lambda: server.ask("STATS")["queue_events"] >= 10_000, 30)
        ends = time.monotonic() + STALL_S
        while time.monotonic() < ends:
            stats = server.ask("STATS")
            samples.append((server.rss_bytes, stats["queue_events"], stats["received"]))
            time.sleep(0.1)
    for sender in senders:
        sender.stop()
    for sender in senders:
        sender.join(60)
    rss = [sample[0] for sample in samples]
    queued = max(sample[1] for sample in samples)
    assert server.process.poll() is None
    verdict = ledger.verify(server)
    record_figures(
        "stalled disk, 50 flooders", **verdict.figures, stalled_s=STALL_S, rss_bytes=max(rss), queue_events=queued
    )
    assert max(rss) < (96 << 20) + (CACHE_KIB << 10)
    assert queued < 10_000 + 50 * 2500
    assert server.stop() == 0
    check_database(server.db)
