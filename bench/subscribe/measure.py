"""All parts in turn: ``python -m bench subscribe``."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from bench import command, result
from bench.subscribe import catch_up, fan_out, memory, moments, nats, ours, redis, stages, writer
from bench.subscribe.ours import Ours
from bench.subscribe.system import Start, Systems

PARTS: Final = ("catch-up", "stages", "fan-out", "writer", "memory", "moments")
PEERS: Final[dict[str, Start]] = {"redis": redis.start, "nats": nats.start}

LOAD_DIVISOR: Final = 5
"""Stored events are divided by this for a load beside readers, because their catch-up must last as long as the load."""

FAN_OUT_FROM: Final = 1 << 40
WRITER_FROM: Final = 1 << 41
"""The first numbers of events that are not stored yet."""


def add_command(commands: command.Commands) -> None:
    """Add ``subscribe`` to the commands of the bench."""
    one = commands.add_parser(
        "subscribe", help="catch-up, fan-out, and what readers cost, compared with Redis and NATS (see peers)"
    )
    one.set_defaults(run=_run)
    one.add_argument("--events", type=int, default=1_000_000, help="events to catch up with (%(default)s)")
    one.add_argument("--readers", type=int, default=1000, help="most readers at a time (%(default)s)")
    one.add_argument("--seconds", type=float, default=3, help="how long each rate is offered (%(default)s)")
    one.add_argument(
        "--only", type=_parts, default=PARTS, metavar="PART,…", help=f"parts to run: {', '.join(PARTS)} (all)"
    )
    one.add_argument("--runs", type=int, default=3, help="rounds; medians count (%(default)s)")
    command.add_paths(one)


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(PARTS)}")
    return parts


def _run(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as after Ctrl-C, so that no peer outlives the bench
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measurement = _Measurement(options, Path(folder))
        with measurement.progress:
            measurement.run()
    settings = {key: str(getattr(options, key)) for key in ("events", "readers", "seconds", "runs")}
    settings["only"] = ",".join(options.only)
    described = result.describe("subscribe", settings, measurement.figures)
    described["versions"] |= measurement.versions
    result.write(described, options.output)
    return command.exit_code(measurement.figures)


class _Measurement:
    """One run of the command; ``figures`` are the results, part by part."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.figures: dict[str, Any] = {}
        self.versions: dict[str, str] = {}
        self.progress = tqdm(unit="run", disable=not sys.stderr.isatty())
        self._options = options
        self._folder = folder
        self._not_run: dict[str, str] = {}

    def run(self) -> None:
        """Run every part that was asked for."""
        asked = set(self._options.only)
        if asked - {"fan-out"}:
            self._with_a_store(asked)
        if "fan-out" in asked:
            self._fan_out()
        if self._not_run:
            self.figures["not_run"] = self._not_run

    def _with_a_store(self, asked: set[str]) -> None:
        options = self._options
        store = self._empty("ours")
        lines, expected = catch_up.events(options.events)
        gc.freeze()
        with ours.start(store) as server:
            server.fill(lines)
            if "catch-up" in asked:
                self._catch_up(server, lines, expected)
            del lines
            gc.unfreeze()
            if "writer" in asked:
                count = max(writer.SENDERS, options.events // LOAD_DIVISOR)
                numbers = writer.events_of_round(count, options.seconds)
                self._repeat(
                    "writer",
                    lambda number: writer.one_round(
                        server, count, options.seconds, WRITER_FROM + number * numbers, options.events, number % 2 == 1
                    ),
                )
            if "moments" in asked:
                self.figures["moments"] = moments.measured(server)
        if "stages" in asked:
            self._repeat("stages", lambda number: stages.one_round(store / "events.db", options.events))
        if "memory" in asked:
            self.figures["memory"] = memory.measured(store, self._empty("memory"), options.readers)

    def _catch_up(self, server: Ours, lines: list[bytes], expected: catch_up.Expected) -> None:
        with ExitStack() as running:
            systems = self._beside(server, running, "catch-up", lines)
            self._repeat("catch_up", lambda number: catch_up.one_round(systems, expected, number % 2 == 1))

    def _fan_out(self) -> None:
        options = self._options
        shapes = fan_out.shapes(options.readers)
        numbers = sum(fan_out.events(shape, options.seconds) for shape in shapes)
        with ExitStack() as running:
            server = running.enter_context(ours.start(self._empty("fan-out")))
            systems = self._beside(server, running, "fan-out", [])
            self._repeat(
                "fan_out",
                lambda number: fan_out.one_round(
                    systems, shapes, options.seconds, FAN_OUT_FROM + number * numbers, number % 2 == 1
                ),
            )

    def _empty(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir()
        return folder

    def _beside(self, server: Ours, running: ExitStack, part: str, lines: list[bytes]) -> Systems:
        """Our server and the peers that can be started, filled with these events."""
        systems = Systems(server, self._failed)
        for name, start in PEERS.items():
            folder = self._empty(f"{part}-{name}")
            try:
                system = running.enter_context(start(folder))
                self.versions |= system.versions()
                if lines:
                    system.fill(lines)
            except (Exception, SystemExit) as error:  # whatever a peer does, ours is measured
                self._failed(name, error)
            else:
                systems.add(name, system)
        return systems

    def _failed(self, name: str, error: BaseException) -> None:
        """Record why a peer was not run, in the figures and on standard error."""
        self._not_run[name] = str(error).replace(f"{self._folder}/", "") or type(error).__name__
        self.progress.write(f"{name}: not run: {self._not_run[name]}", file=sys.stderr)

    def _repeat(self, part: str, one_round: Callable[[int], dict[str, Any]]) -> None:
        runs = []
        for number in range(self._options.runs):
            runs.append(one_round(number))
            self.progress.update()
            for line in command.summary({part: runs[-1]}):
                self.progress.write(line, file=sys.stderr)
        self.figures[part] = {"medians": command.medians(runs), "runs": runs}
