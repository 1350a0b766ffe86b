"""``python -m bench load``, ``peers``: measure, print, and write one result file; ``plot`` draws such files."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson
from tqdm import tqdm

from aggregator import client
from aggregator.cli import address
from bench import ceiling, load, plot, result, workload
from bench.peers import compare
from bench.process import Server

LATENCY_CONNECTIONS = 8
LATENCY_S = 5.0
"""How long a rate is offered: some ten thousand acks for the 99th percentile."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("load", help="throughput against the append ceiling, and ack latency at a rate")
    one.set_defaults(run=_load)
    one.add_argument("--events", type=int, default=200_000, help="events a run (%(default)s)")
    one.add_argument("--dup", type=float, default=0.25, help="part of them sent twice (%(default)s)")
    one.add_argument("--connections", type=int, default=4, help="(%(default)s)")
    one.add_argument("--ids", choices=("random", "ordered"), default="random", help="UUIDv4 or UUIDv7 (%(default)s)")
    one.add_argument("--runs", type=int, default=3, help="each with an empty database; medians count (%(default)s)")
    one.add_argument("--rate", type=float, default=5000, help="offered for the latency, events/s (%(default)s)")
    one.add_argument(
        "--to", type=address, metavar="HOST:PORT", help="a running server instead of one started for each run"
    )
    one.add_argument("--folder", type=Path, help="where the databases go: the disk that is measured (a temporary one)")
    one.add_argument("--output", type=Path, help="result file (standard output)")
    compare.add_command(commands)
    two = commands.add_parser("plot", help="draw results of `load`, or one of `peers`, again")
    two.set_defaults(run=_plot)
    two.add_argument("results", nargs="+", type=Path, metavar="RESULT")
    two.add_argument("--output", type=Path, required=True, help="an .svg file")
    options = parser.parse_args()
    return int(options.run(options))


def _plot(options: argparse.Namespace) -> int:
    if json.loads(options.results[0].read_text())["bench"] == "peers":
        plot.draw_peers(options.results[0], options.output)
    else:
        plot.draw(options.results, options.output)
    return 0


def _load(options: argparse.Namespace) -> int:
    runs: list[dict[str, Any]] = []
    progress = tqdm(range(options.runs), unit="run", disable=not sys.stderr.isatty())
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number in progress:
            one = _one_run(options, Path(folder), number)
            runs.append(one)
            progress.write(
                f"{one['events_per_s']:,}/s acked = {one['of_ceiling']} of {one['ceiling_per_s']:,}/s; "
                f"p50 {one['latency']['p50_ms']} ms, p99 {one['latency']['p99_ms']} ms at {options.rate:g}/s; "
                f"exact: {one['exact']}",
                file=sys.stderr,
            )
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("run", "output", "folder")}
    medians = {
        name: statistics.median(one[name] for one in runs)
        for name in ("events_per_s", "ceiling_per_s", "of_ceiling", "fdatasync_p50_ms")
    }
    medians |= {
        f"latency_{name}": statistics.median(one["latency"][name] for one in runs) for name in ("p50_ms", "p99_ms")
    }
    result.write(result.describe("load", settings, {"medians": medians, "runs": runs}), options.output)
    return 0 if all(one["exact"] for one in runs) else 1


def _one_run(options: argparse.Namespace, folder: Path, number: int) -> dict[str, Any]:
    """Ceiling, throughput, ceiling again (machines slow down after a burst), then latency on the same database."""
    first = number * (options.events + int(options.rate * LATENCY_S))
    work = workload.generate(options.events, options.dup, options.connections, options.ids, first)
    offered = workload.generate(
        int(options.rate * LATENCY_S), options.dup, LATENCY_CONNECTIONS, options.ids, first + options.events
    )
    lines = list(itertools.chain.from_iterable(work.lines))
    figures: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        server = None
        host, port = options.to or ("127.0.0.1", 0)
        if not options.to:
            own = folder / str(number)
            own.mkdir()
            server = stack.enter_context(Server(own))
            port = server.port
        before = ceiling.append_rate(folder, lines)
        cpu_before_s = server.cpu_s if server else 0.0
        figures |= load.throughput(host, port, work)
        if server:
            figures["server_cpu_us_per_event"] = round((server.cpu_s - cpu_before_s) / work.count * 1e6, 2)
            figures["server_rss_mb"] = round(server.rss_bytes / 1e6, 1)
        ceilings = [before, ceiling.append_rate(folder, lines)]
        figures["ceilings_per_s"] = [round(one) for one in ceilings]
        figures["ceiling_per_s"] = round(statistics.mean(ceilings))
        figures["of_ceiling"] = round(figures["events_per_s"] / figures["ceiling_per_s"], 4)
        figures["fdatasync_p50_ms"] = round(ceiling.fdatasync_ms(folder), 4)
        figures["latency"] = load.latency(host, port, offered, options.rate)
        figures["stats"] = orjson.loads(asyncio.run(client.ask(host, port, "STATS", 10)))
    return figures


if __name__ == "__main__":
    sys.exit(main())
