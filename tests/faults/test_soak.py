"""For a long time at half of what the server can: nothing grows, nothing slows down."""

from __future__ import annotations

import statistics
import time

import pytest

from tests.checker import Ledger
from tests.faults.flooder import Flooder
from tests.faults.polite import polite_clients
from tests.faults.record import RecordFigures
from tests.faults.sizes import SOAK_S
from tests.server_process import ServerProcess, wait_until

MIB = 1 << 20
WAL_LIMIT_BYTES = 128 * MIB  # checkpoints are due at 32 MiB, the file is cut to 64 MiB


@pytest.mark.timeout(SOAK_S + 300)
def test_nothing_grows_under_steady_load(server: ServerProcess, record_figures: RecordFigures) -> None:
    """T41. Memory, descriptors, WAL, latency, each looked at every second. The first third is left out: caches fill.

    Half of peak is what one flooder reaches in three seconds, halved. Ids start again after four million events, so
    that the disk is not filled: new events and duplicates are both part of it. Memory may grow by 1 MB in ten minutes,
    and by what one more look at another moment of the same saw-tooth differs (see test_churn_leaves_nothing_behind).
    """
    with Flooder(server.port, "peak", 3) as flooder:
        sent, _ = flooder.end()
    rate = sent / 3 / 2
    ledger = Ledger()
    memory: list[int] = []
    descriptors: list[int] = []
    wal: list[int] = []
    looks: list[float] = []  # when in each client's list of waits
    with (
        Flooder(server.port, "soak", SOAK_S, rate) as flooder,
        polite_clients(ledger, server.port, 2, "polite") as polite,
    ):
        marks: list[list[int]] = []
        started = time.monotonic()
        while flooder.running and time.monotonic() - started < SOAK_S:
            looks.append(time.monotonic() - started)
            memory.append(server.rss_bytes)
            descriptors.append(server.descriptors)
            wal.append(server.ask("STATS")["wal_bytes"])
            marks.append([len(client.waited_s) for client in polite])
            time.sleep(1)  # the interval of looking
        sent, answered = flooder.end()
    wait_until(lambda: server.ask("STATS")["connections"] == 1)

    third = len(looks) // 3
    waited = [
        sorted(
            one
            for number, client in enumerate(polite)
            for one in client.waited_s[marks[start][number] : marks[start + third - 1][number]]
        )
        for start in (third, 2 * third)
    ]
    early_s, late_s = (part[len(part) * 99 // 100] for part in waited)
    early, late = (statistics.median(memory[start : start + third]) for start in (third, 2 * third))
    minutes = (looks[2 * third] - looks[third]) / 60
    slope = (late - early) / MIB / minutes * 10
    record_figures(
        "soak", seconds=SOAK_S, rate=rate, sent=sent, mib_in_10_min=slope, wal_bytes=max(wal),
        p99_early_s=early_s, p99_late_s=late_s, rss_bytes=max(memory),
        descriptors=max(descriptors) - min(descriptors),
    )  # fmt: skip

    assert answered == sent > rate * SOAK_S * 0.8, "the load was there"
    assert late - early < minutes / 10 * MIB + 4 * MIB
    assert max(descriptors[third:]) - min(descriptors[third:]) <= 2
    assert max(wal) < WAL_LIMIT_BYTES
    assert late_s < 1.2 * early_s + 0.05
    assert server.ask("STATS")["errors"] == 0
    ledger.verify(server)
    assert "Traceback" not in server.log
