"""What readers cost the senders: throughput and ack latency without readers and with them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from bench import latency, load, workload
from bench.subscribe.ours import Ours
from bench.subscribe.reader import Plan, Readers, Report

SENDERS: Final = 4
BEHIND: Final = 8

RATE: Final = 5000.0
CONNECTIONS: Final = 8

NONE: Final = "no_readers"
LIVE: Final = "one_live"
ONE_BEHIND: Final = "one_catching_up"
ALL_BEHIND: Final = f"{BEHIND}_catching_up"


def one_round(
    ours: Ours, count: int, seconds: float, first: int, backlog: int, backwards: bool
) -> dict[str, dict[str, Any]]:
    """Each part once. Events are numbered from ``first``; at least ``backlog`` events are stored."""
    loads: dict[str, Callable[[workload.Workload], dict[str, Any]]] = {
        NONE: lambda work: _load(ours, work),
        LIVE: lambda work: _beside_live(ours, work),
        ONE_BEHIND: lambda work: _beside_behind(ours, work, 1, backlog),
        ALL_BEHIND: lambda work: _beside_behind(ours, work, BEHIND, backlog),
    }
    acks: dict[str, Callable[[workload.Workload], dict[str, Any]]] = {
        NONE: lambda work: latency.at_rate(ours.port, work, RATE),
        ALL_BEHIND: lambda work: _acks_beside_behind(ours, work, backlog),
    }
    figures: dict[str, dict[str, Any]] = {"load": {}, "acks": {}}
    for name, run in list(loads.items())[:: -1 if backwards else 1]:
        figures["load"][name] = run(workload.generate(count, 0, SENDERS, "random", first))
        first += count
    offer = max(CONNECTIONS, int(RATE * seconds))
    for name, run in list(acks.items())[:: -1 if backwards else 1]:
        figures["acks"][name] = run(workload.generate(offer, 0, CONNECTIONS, "random", first))
        first += offer
    none = figures["load"][NONE]["events_per_s"]
    for name in (LIVE, ONE_BEHIND, ALL_BEHIND):
        figures["load"][name]["to_no_readers"] = round(figures["load"][name]["events_per_s"] / none, 4)
    beside, without = figures["acks"][ALL_BEHIND], figures["acks"][NONE]
    for part in ("p50", "p99"):
        beside[f"{part}_to_no_readers"] = round(beside[f"{part}_ms"] / without[f"{part}_ms"], 4)
    return figures


def events_of_round(count: int, seconds: float) -> int:
    """How many numbers of events a round uses."""
    return 4 * count + 2 * max(CONNECTIONS, int(RATE * seconds))


def _load(ours: Ours, work: workload.Workload) -> dict[str, Any]:
    figures = load.measure("127.0.0.1", ours.port, work)
    return {name: figures[name] for name in ("events", "seconds", "events_per_s", "exact")}


def _beside_live(ours: Ours, work: workload.Workload) -> dict[str, Any]:
    with Readers(Plan(ours.port, 1, ours.greeting, ours.ready, ours.mark, expected=work.count)) as readers:
        figures = _load(ours, work)
        report = readers.finish()
    figures["exact"] = figures["exact"] and report.events == work.count
    return figures


def _beside_behind(ours: Ours, work: workload.Workload, count: int, backlog: int) -> dict[str, Any]:
    with _behind(ours, count) as readers:
        figures = _load(ours, work)
        report = readers.stop()
    return figures | _caught(report, figures["seconds"], backlog, figures["events_per_s"])


def _acks_beside_behind(ours: Ours, work: workload.Workload, backlog: int) -> dict[str, Any]:
    with _behind(ours, BEHIND) as readers:
        figures = latency.at_rate(ours.port, work, RATE)
        report = readers.stop()
    return figures | _caught(report, work.count / RATE, backlog, RATE)


@contextmanager
def _behind(ours: Ours, count: int) -> Iterator[Readers]:
    with Readers(Plan(ours.port, count, b"SUBSCRIBE * AFTER 0\n", b'"subscribed"', ours.mark)) as readers:
        yield readers


def _caught(report: Report, seconds: float, backlog: int, rate: float) -> dict[str, Any]:
    """What the readers got in the last ``seconds`` seconds."""
    ended = max((one.moments[-1] for one in report.readers if one.moments), default=0.0)
    before = [bisect_right(one.moments, ended - seconds) for one in report.readers]
    events = sum(
        one.events - (one.counts[place - 1] if place else 0) for one, place in zip(report.readers, before, strict=True)
    )
    return {
        "delivered_per_s": round(events / seconds),
        "delivered_to_stored": round(events / seconds / rate, 4),
        "behind_throughout": all(one.events < backlog for one in report.readers),
    }
