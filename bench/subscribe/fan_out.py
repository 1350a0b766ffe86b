"""Each event to many readers, at an offered rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Final

from bench import offered, workload
from bench.subscribe.ours import Ours
from bench.subscribe.reader import Plan, Readers, Report
from bench.subscribe.system import System, Systems


@dataclass(frozen=True, slots=True)
class Shape:
    """A number of readers, and a rate of events a second."""

    readers: int
    rate: int

    def __str__(self) -> str:
        return f"{self.readers} x {self.rate}/s"


SHAPES: Final = (Shape(10, 5000), Shape(100, 1000), Shape(1000, 100), Shape(1000, 1000))

PER_S: Final = 100_000
"""Delays are counted in hundredths of a millisecond, because there are millions of them."""

PARTS: Final = (50, 99, 100)


def shapes(most_readers: int) -> list[Shape]:
    """The shapes of the record, with at most this many readers."""
    return list(dict.fromkeys(Shape(min(one.readers, most_readers), one.rate) for one in SHAPES))


def events(shape: Shape, seconds: float) -> int:
    """How many events are sent to measure a shape."""
    return max(1, int(shape.rate * seconds))


def one_round(
    systems: Systems, shapes: Sequence[Shape], seconds: float, first: int, backwards: bool
) -> dict[str, dict[str, Any]]:
    """Each shape once with each system. Events are numbered from ``first``; with ``backwards``, ours comes last."""
    figures = {}
    for shape in shapes:
        (lines,) = workload.generate(events(shape, seconds), 0, 1, "random", first).lines
        first += len(lines)
        figures[str(shape)] = systems.each(partial(_measured, shape, lines), backwards)
    return figures


def _measured(shape: Shape, lines: list[bytes], system: System) -> dict[str, Any]:
    count = len(lines)
    plan = Plan(system.port, shape.readers, system.greeting, system.ready, system.mark, expected=count)
    with Readers(plan) as readers:
        # Over one connection, because only then all readers get the events in an order that is known beforehand.
        channel = system.channel(lines)
        cpu_s = system.cpu_s
        sent = offered.offer([channel], shape.rate)
        report = readers.finish()
        cpu_s = system.cpu_s - cpu_s
    deliveries = max(1, report.events)
    last = lines[-1][:-2]
    figures = {
        "deliveries": report.events,
        "exact": not sent["errors"] and all(one.events == count and last in one.last for one in report.readers),
        "achieved_per_s": sent["achieved_per_s"],
        "server_cpu_us_per_delivery": round(cpu_s / deliveries * 1e6, 3),
        "reader_cpu_us_per_delivery": round(report.cpu_s / deliveries * 1e6, 3),
        "after_sent": delays(report, channel.left),
        "sender": sent["sender"],
    }
    if isinstance(system, Ours):  # the others store nothing
        figures["ack"] = {name: sent[name] for name in ("p50_ms", "p99_ms", "p100_ms")}
        figures["after_ack"] = delays(report, channel.acked)
    return figures


def delays(report: Report, moments: Sequence[float]) -> dict[str, float]:
    """How long after its moment each event arrived, over all readers. The first twentieth does not count."""
    first = int(len(moments) * offered.WARM_UP)
    found: Counter[int] = Counter()
    for reader in report.readers:
        before = first
        for moment, count in zip(reader.moments, reader.counts, strict=True):
            for number in range(before, min(count, len(moments))):
                found[int((moment - moments[number]) * PER_S)] += 1
            before = max(before, count)
    return _percentiles(found)


def _percentiles(found: Counter[int]) -> dict[str, float]:
    ordered = sorted(found)
    totals = list(accumulate(found[one] for one in ordered))
    if not totals:
        return {}
    figures = {}
    for part in PARTS:
        place = min(totals[-1] - 1, int(totals[-1] * part / 100))
        figures[f"p{part}_ms"] = next(one for one, total in zip(ordered, totals, strict=True) if total > place) / (
            PER_S / 1000
        )
    return figures
