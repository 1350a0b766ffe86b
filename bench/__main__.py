"""``python -m bench load``: measure, print, and write one result file."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import ceiling, load, result, workload
from bench.process import Server

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
    one.add_argument("--to", metavar="HOST:PORT", help="a running server instead of one started for each run")
    one.add_argument("--folder", type=Path, help="where the databases go: the disk that is measured (a temporary one)")
    one.add_argument("--output", type=Path, help="result file (standard output)")
    options = parser.parse_args()
    return int(options.run(options))


def _load(options: argparse.Namespace) -> int:
    runs: list[dict[str, Any]] = []
    firsts = itertools.count(0, 10_000_000)
    progress = tqdm(range(options.runs), unit="run", disable=not sys.stderr.isatty())
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number in progress:
            work = workload.generate(options.events, options.dup, options.connections, options.ids, next(firsts))
            offered = workload.generate(int(options.rate * LATENCY_S), options.dup, 8, options.ids, next(firsts))
            figures: dict[str, Any] = {
                "ceiling_per_s": round(ceiling.append_rate(Path(folder), [one for part in work.lines for one in part])),
                "fdatasync_p50_ms": round(ceiling.fdatasync_ms(Path(folder)), 4),
            }
            with contextlib.ExitStack() as stack:
                server = None
                host, port = "127.0.0.1", 0
                if options.to:
                    host, _, text = options.to.rpartition(":")
                    port = int(text)
                else:
                    own = Path(folder) / str(number)
                    own.mkdir()
                    server = stack.enter_context(Server(own))
                    port = server.port
                figures |= load.throughput(host, port, work)
                figures["of_ceiling"] = round(figures["events_per_s"] / figures["ceiling_per_s"], 4)
                if server:
                    figures["server_cpu_us_per_event"] = round(server.cpu_s / work.count * 1e6, 2)
                    figures["server_rss_mb"] = round(server.rss_bytes / 1e6, 1)
                figures["latency"] = load.latency(host, port, offered, options.rate)
                figures["stats"] = load.ask(host, port, "STATS")
            runs.append(figures)
            progress.write(
                f"{figures['events_per_s']:,}/s acked = {figures['of_ceiling']} of {figures['ceiling_per_s']:,}/s; "
                f"p50 {figures['latency']['p50_ms']} ms, p99 {figures['latency']['p99_ms']} ms at {options.rate:g}/s; "
                f"exact: {figures['exact']}",
                file=sys.stderr,
            )
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("run", "output", "folder")}
    medians = {
        name: statistics.median(run[name] for run in runs)
        for name in ("events_per_s", "ceiling_per_s", "of_ceiling", "fdatasync_p50_ms")
    }
    result.write(result.describe("load", settings, {"medians": medians, "runs": runs}), options.output)
    return 0 if all(run["exact"] for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
