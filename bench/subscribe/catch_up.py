"""Stored events, read as fast as possible: all of them from each system, and parts of them from ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from bench import workload
from bench.subscribe.ours import Ours
from bench.subscribe.system import Caught, System, Systems, topic

RARE: Final = "app.rare"
EACH: Final = 1000
"""One event in so many has the rare topic."""

HALF: Final = "app.service-*[02468]"
ONE: Final = workload.TOPICS[7]

ALL: Final = "all"
"""What every system is asked for; the other parts are measured with ours alone."""


@dataclass(frozen=True, slots=True)
class Expected:
    """How many events there are in all, and of some topics."""

    all: int
    half: int
    one: int
    rare: int


def events(count: int) -> tuple[list[bytes], Expected]:
    """The events that are stored, each once, with 20 topics and a rare one."""
    (lines,) = workload.generate(count, 0, 1, "random").lines
    for place in range(EACH // 2, count, EACH):
        lines[place] = lines[place].replace(topic(lines[place]), RARE.encode(), 1)
    found = Counter(map(topic, lines))
    half = sum(number for name, number in found.items() if name.startswith(b"app.service-") and name[-1:] in b"02468")
    return lines, Expected(count, half, found[ONE.encode()], found[RARE.encode()])


def one_round(systems: Systems, expected: Expected, backwards: bool) -> dict[str, dict[str, Any]]:
    """Measure everything once; with ``backwards``, ours comes last."""

    def measure(system: System) -> dict[str, Any]:
        if isinstance(system, Ours):
            return _of_ours(system, expected)
        return {ALL: measured(system, lambda: system.catch_up(expected.all))}

    return systems.each(measure, backwards)


def _of_ours(ours: Ours, expected: Expected) -> dict[str, Any]:
    head = expected.all
    return {
        ALL: measured(ours, lambda: ours.catch_up(head)),
        "half_of_topics": measured(ours, lambda: ours.catch_up(expected.half, HALF, head)),
        "one_of_20": measured(ours, lambda: ours.catch_up(expected.one, ONE, head)),
        "one_of_20_polled": measured(ours, lambda: ours.poll(expected.one, ONE)),
        "one_of_1000": measured(ours, lambda: ours.catch_up(expected.rare, RARE, head)),
    }


def measured(system: System, read: Callable[[], Caught]) -> dict[str, Any]:
    """The figures of one catch-up."""
    cpu_s = system.cpu_s
    caught = read()
    return {
        "events": caught.events,
        "seconds": round(caught.seconds, 4),
        "events_per_s": round(caught.events / caught.seconds),
        "server_cpu_us_per_event": round((system.cpu_s - cpu_s) / max(1, caught.events) * 1e6, 3),
        "exact": caught.exact,
    }
