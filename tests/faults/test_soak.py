"""A long time at half of the server's peak: nothing grows, and nothing becomes slower."""

from __future__ import annotations

import statistics
import time

import pytest

from tests.harness.account import Account
from tests.harness.flooder import Flooder
from tests.harness.polite_client import percentile, polite_clients
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess
from tests.harness.sizes import SLACK, SOAK_S

MIB = 1 << 20
WAL_LIMIT_BYTES = 128 * MIB  # checkpoints are due at 32 MiB, and the file is cut to 64 MiB


@pytest.mark.timeout(SOAK_S + 300)
def test_nothing_grows_under_steady_load(server: ServerProcess, record_figures: RecordFigures) -> None:
    """T41. Memory, descriptors, WAL and latency are measured every second. The first third is left out: caches fill.

    The peak is what one flooder reaches in three seconds. Ids repeat after four million events, so that the disk does
    not fill up; from then on the load consists of duplicates. Memory may grow by 1 MB in ten minutes, plus 4 MiB,
    because it goes up and down like a sawtooth (see test_churn_leaves_nothing_behind). The bench measures how latency
    grows.
    """
    with Flooder(server.port, "peak", 3) as flooder:
        sent, _ = flooder.end()
    rate = sent / 3 / 2
    account = Account()
    memory: list[int] = []
    descriptors: list[int] = []
    wal: list[int] = []
    looks: list[float] = []  # seconds since the start, of each sample
    with (
        Flooder(server.port, "soak", SOAK_S, rate) as flooder,
        polite_clients(account, server.port, 2) as polite,
    ):
        marks: list[list[int]] = []
        started = time.monotonic()
        while flooder.running and time.monotonic() - started < SOAK_S:
            looks.append(time.monotonic() - started)
            memory.append(server.rss_bytes)
            descriptors.append(server.descriptors)
            wal.append(server.ask("STATS")["wal_bytes"])
            marks.append([len(client.waited_s) for client in polite])
            time.sleep(1)  # the sampling interval
        sent, answered = flooder.end()
    wait_until(lambda: server.ask("STATS")["connections"] == 1)

    third = len(looks) // 3
    waited = [
        [
            waited_s
            for number, client in enumerate(polite)
            for waited_s in client.waited_s[marks[start][number] : marks[start + third - 1][number]]
        ]
        for start in (third, 2 * third)
    ]
    early_s, late_s = (percentile(part, 0.99) for part in waited)
    early, late = (statistics.median(memory[start : start + third]) for start in (third, 2 * third))
    minutes = (looks[2 * third] - looks[third]) / 60
    slope = (late - early) / MIB / minutes * 10
    record_figures(
        "soak", seconds=SOAK_S, rate=rate, sent=sent, mib_in_10_min=slope, wal_bytes=max(wal),
        p99_early_s=early_s, p99_late_s=late_s, rss_bytes=max(memory),
        descriptors=max(descriptors) - min(descriptors),
    )  # fmt: skip

    assert answered == sent > rate * SOAK_S / SLACK, "the load was there"
    assert late - early < minutes / 10 * MIB + 4 * MIB
    assert max(descriptors[third:]) - min(descriptors[third:]) <= 2
    assert max(wal) < WAL_LIMIT_BYTES
    assert late_s < SLACK * (1.2 * early_s + 0.05)
    assert server.ask("STATS")["errors"] == 0
    account.verify(server)
    assert "Traceback" not in server.log
