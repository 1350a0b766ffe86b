"""PostgreSQL, the second engine: under our engine against under psycopg alone, in the same run.

Every second run measures each comparison in the opposite order. A whole server over PostgreSQL is compared with a whole
server over SQLite.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvloop
from tqdm import tqdm

from aggregator import storage
from aggregator.config import Config
from bench import appending, command, load, workload
from bench.appending import Part, make_plain, ours, plain
from bench.cluster import Cluster, cluster, version
from bench.peers import postgres
from bench.peers.daemon import installed
from bench.peers.peer import NotRun
from bench.process import Server

BARS: Final = {
    "one_lane_10000": 1.4,
    "one_lane_1000": 1.1,
    "grown_10000": 1.25,
    "standby_10000": 1.3,
    "lanes_10000": 1.4,
    "server": 0.6,
}
"""The least that ratios should be: to psycopg alone; ``lanes…``: of four to one; ``server``: to the one over SQLite."""

GROWN: Final = 5_000_000
"""How many keys are stored where ``grown…`` and ``wal_grown`` are measured."""

MOST: Final = {"wal_fresh": 0.6, "wal_grown": 0.5, "held": 1.5}
"""The most that ratios should be: WAL for an event, to psycopg alone; ``held``: the last commits to the first ones."""

LANES: Final = 4
CONNECTIONS: Final = 4

_numbers = itertools.count()
FILL: Final = 1_000_000
"""Keys that are added at a time while the tables grow."""

KEYS: Final = "INSERT INTO lane_0.keys SELECT gen_random_uuid(), 0 FROM generate_series(1, {rows})"


def add_command(commands: command.Commands) -> None:
    """Add ``engine`` to the commands of the bench."""
    one = commands.add_parser("engine", help="PostgreSQL as the engine, against psycopg alone and against SQLite")
    one.set_defaults(run=_run)
    one.add_argument("--events", type=int, default=400_000, help="events of each measurement (%(default)s)")
    one.add_argument("--dup", type=float, default=0.25, help="part of the events that is sent twice (%(default)s)")
    one.add_argument("--server-events", type=int, default=500_000, help="events for a whole server (%(default)s)")
    one.add_argument("--commits", type=int, default=18_000, help="single commits under a snapshot (%(default)s)")
    one.add_argument(
        "--keys", type=int, nargs="*", default=[GROWN], metavar="N",
        help="measure again with N keys stored (5000000); for growth: 1000000 5000000 10000000 20000000",
    )  # fmt: skip
    command.add_common(one, runs=3)


def _run(options: argparse.Namespace) -> int:
    try:
        return _measure(options)
    except NotRun as error:
        raise SystemExit(str(error)) from error


def _measure(options: argparse.Namespace) -> int:
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for number in tqdm(range(options.runs), unit="run", disable=not sys.stderr.isatty()):
            runs.append(_one_run(options, number, folder))
            for line in command.summary(runs[-1]):
                tqdm.write(line, file=sys.stderr)
        grown = _grow(options, folder)
    medians = command.medians(runs)
    figures = {"medians": medians, "runs": runs, "grown": grown, "ratios": _ratios(medians, grown)}
    figures["versions"] = {"postgresql": version(), **installed("psycopg")}
    command.write("engine", options, figures)
    return command.exit_code(figures)


def _one_run(options: argparse.Namespace, number: int, folder: Path) -> dict[str, Any]:
    run: dict[str, Any] = {}
    with cluster(folder / "cluster") as made:
        for batch in (10_000, 1000):
            run[f"fresh_{batch}"] = _compared(options, made, number, batch)
        run["lanes_10000"] = _lanes(options, made, number)
        run["held"] = uvloop.run(_held(made, options.commits))
        run["server"] = _servers(options, made, folder, number)
    with cluster(folder / "cluster", standby=True) as made:
        run["standby_10000"] = _compared(options, made, number, 10_000)
    return run


def _compared(options: argparse.Namespace, made: Cluster, number: int, batch: int) -> dict[str, Any]:
    """One lane against one connection, each with empty tables."""
    part = Part(options.events, 0, 0, options.dup)

    def measure_ours() -> dict[str, Any]:
        return ours(made, _database(made), part, batch, lanes=1)

    def measure_plain() -> dict[str, Any]:
        name = _database(made)
        make_plain(made, name)
        return plain(made, name, part, batch)

    return _with_ratio(_in_turn(number, ours=measure_ours, plain=measure_plain), "ours", "plain")


def _lanes(options: argparse.Namespace, made: Cluster, number: int) -> dict[str, Any]:
    """Our engine with four lanes, and with one; psycopg alone over four connections."""
    part = Part(options.events, 0, 0, options.dup)

    def measure_plain() -> dict[str, Any]:
        name = _database(made)
        make_plain(made, name)
        return plain(made, name, part, 10_000, CONNECTIONS)

    figures = _in_turn(
        number,
        four=lambda: ours(made, _database(made), part, 10_000, LANES),
        one=lambda: ours(made, _database(made), part, 10_000, 1),
        plain=measure_plain,
    )
    return _with_ratio(figures, "four", "one")


def _servers(options: argparse.Namespace, made: Cluster, folder: Path, number: int) -> dict[str, Any]:
    """Whole servers with four connections: over PostgreSQL with one lane and with four, and over SQLite."""
    work = workload.generate(options.server_events, options.dup, CONNECTIONS, "random")

    def measure(*arguments: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder) as own, Server(Path(own), *arguments) as server:
            cpu_s = server.cpu_s
            figures = load.measure("127.0.0.1", server.port, work)
            figures["server_cpu_us_per_event"] = round((server.cpu_s - cpu_s) / work.count * 1e6, 2)
            return figures

    def over_postgres(lanes: int) -> dict[str, Any]:
        return measure("--db", made.url(_database(made)), "--lanes", str(lanes), "--standbys", str(made.standbys))

    figures = _in_turn(
        number, postgres=lambda: over_postgres(1), postgres_lanes=lambda: over_postgres(LANES), sqlite=measure
    )
    return _with_ratio(figures, "postgres", "sqlite")


async def _held(made: Cluster, count: int) -> dict[str, Any]:
    """Commits of one event while a session holds a snapshot; the control changes one row with each commit."""
    name = _database(made)
    engine = await storage.open(Config(db=made.url(name), lanes=1, standbys=made.standbys))
    try:
        await appending.commits(engine, 100, 0)
        made.ask("CREATE TABLE clock AS SELECT 0 AS n", name)
        with made.connect(name) as holder, made.connect(name) as bare:
            holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT n FROM clock")
            times = await appending.commits(engine, count, 100)
            control = []
            for _ in range(count):
                started = time.perf_counter()
                bare.execute("UPDATE clock SET n = n + 1")
                control.append(time.perf_counter() - started)
    finally:
        await engine.close()
    return {"ours": _first_and_last(times), "changed_row": _first_and_last(control)}


def _first_and_last(times_s: list[float]) -> dict[str, float]:
    some = max(1, len(times_s) // 18)
    first, last = (statistics.median(part) * 1000 for part in (times_s[:some], times_s[-some:]))
    return {"first_ms": round(first, 3), "last_ms": round(last, 3), "last_to_first": round(last / first, 3)}


def _grow(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Rate and WAL while keys are added to one database of ours and one of the yardstick, in random order as in use."""
    points: list[dict[str, Any]] = []
    if not options.keys:
        return points
    with cluster(folder / "cluster") as made:
        mine, yard = _database(made), _database(made)
        uvloop.run(_make(made, mine))
        make_plain(made, yard)
        stored = following = 0
        for size in sorted(options.keys):
            _fill(made, mine, yard, size - stored)
            runs = []
            for number in range(options.runs):
                part = Part(options.events, following, following, options.dup)
                following += part.unique
                runs.append(_grown(made, mine, yard, part, number))
            points.append({"keys": size, "medians": command.medians(runs), "runs": runs})
            stored = size + options.runs * part.unique
    return points


def _grown(made: Cluster, mine: str, yard: str, part: Part, number: int) -> dict[str, Any]:
    figures = _in_turn(
        number, ours=lambda: ours(made, mine, part, 10_000, lanes=1), plain=lambda: plain(made, yard, part, 10_000)
    )
    return _with_ratio(figures, "ours", "plain")


def _fill(made: Cluster, mine: str, yard: str, count: int) -> None:
    with tqdm(total=count, unit="key", disable=not sys.stderr.isatty()) as progress:
        for first in range(0, count, FILL):
            rows = min(FILL, count - first)
            made.ask(KEYS.format(rows=rows), mine)
            made.ask(postgres.LOAD.format(rows=rows), yard)
            progress.update(rows)


async def _make(made: Cluster, name: str) -> None:
    """Create the empty tables of our engine."""
    engine = await storage.open(Config(db=made.url(name), lanes=1, standbys=made.standbys))
    await engine.close()


def _in_turn(number: int, **measures: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure each in turn; every second run goes in the opposite order."""
    names = list(measures)[:: -1 if number % 2 else 1]
    found = {name: measures[name]() for name in names}
    return {name: found[name] for name in measures}


def _with_ratio(figures: dict[str, Any], one: str, other: str) -> dict[str, Any]:
    figures["ratio"] = round(figures[one]["events_per_s"] / figures[other]["events_per_s"], 3)
    if "wal_bytes_per_event" in figures[other]:
        figures["wal_ratio"] = round(figures[one]["wal_bytes_per_event"] / figures[other]["wal_bytes_per_event"], 3)
    return figures


def _ratios(medians: dict[str, Any], grown: list[dict[str, Any]]) -> dict[str, float]:
    """The ratios that have bars."""
    found = {name: one["ratio"] for name, one in medians.items() if "ratio" in one}
    ratios = {f"one_lane_{batch}": found[f"fresh_{batch}"] for batch in (10_000, 1000)}
    ratios |= {name: found[name] for name in ("standby_10000", "lanes_10000", "server")}
    ratios["wal_fresh"] = medians["fresh_10000"]["wal_ratio"]
    ratios["held"] = medians["held"]["ours"]["last_to_first"]
    if grown:
        medians = judged(grown)["medians"]
        ratios |= {"grown_10000": medians["ratio"], "wal_grown": medians["wal_ratio"]}
    return ratios


def judged(grown: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the measurements as keys are added, the one that the bars are for: the nearest to GROWN."""
    return min(grown, key=lambda point: abs(int(point["keys"]) - GROWN))


def _database(made: Cluster) -> str:
    """The name of a new database."""
    name = f"logs{next(_numbers)}"
    made.ask(f"CREATE DATABASE {name}")
    return name
