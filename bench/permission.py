"""What it costs, in microseconds for an event, to check that the client may publish it.

The same lines are interpreted with and without a permission, one round each in turn, so that other load on the machine
affects both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, Final

from aggregator.access.identity import Identity
from aggregator.access.topics import Topics
from aggregator.config import Config
from aggregator.wire.meaning import Interpreter
from bench import command, workload

PUBLISHERS: Final = {"everything": None, "some topics": Identity("app", Topics(["app.*"]))}


def add_command(commands: command.Commands) -> None:
    """Add ``permission`` to the commands of the bench."""
    one = commands.add_parser("permission", help="what a permission costs per event")
    one.set_defaults(run=_run)
    one.add_argument("--events", type=int, default=2_000, help="events interpreted in a round (%(default)s)")
    one.add_argument("--rounds", type=int, default=1_000, help="rounds with, and without, a permission (%(default)s)")
    command.add_common(one, runs=3)


def _run(options: argparse.Namespace) -> int:
    return command.repeat("permission", options, lambda number, _: _one_run(options, number))


def _one_run(options: argparse.Namespace, number: int) -> dict[str, Any]:
    (lines,) = workload.generate(options.events, 0, 1, "random", number * options.events).lines
    stripped = [line.rstrip(b"\n") for line in lines]
    took: dict[str, list[float]] = {name: [] for name in PUBLISHERS}
    interpreters = {name: Interpreter(Config().max_line_bytes, None) for name in PUBLISHERS}
    for name, interpreter in interpreters.items():
        interpreter.publisher = PUBLISHERS[name]
    exact = True
    for turn in range(options.rounds):
        for name in sorted(PUBLISHERS, reverse=bool(turn % 2)):
            interpreter = interpreters[name]
            interpreter.add(stripped)
            started = time.perf_counter()
            events = sum(len(found) for found in _all_turns(interpreter))
            took[name].append((time.perf_counter() - started) / options.events * 1e6)
            exact = exact and events == options.events
    medians = {name: round(statistics.median(times), 4) for name, times in took.items()}
    added = round(statistics.median(b - a for a, b in zip(*took.values(), strict=True)), 4)
    return {"us_per_event": {**medians, "added": added}, "exact": exact}


def _all_turns(interpreter: Interpreter) -> list[Any]:
    found: list[Any] = []
    while interpreter.lines:
        found += interpreter.turn()
    return found
