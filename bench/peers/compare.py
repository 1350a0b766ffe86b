"""All peers in turn: ``python -m bench peers``."""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from bench import command, offered, result, workload
from bench.peers import nats, obvious, ours, postgres, redis, reference, syslog
from bench.peers.peer import Peer, Running, Work

RATE: Final = 5000.0
LATENCY_S: Final = 5.0


def registry(rows: int) -> list[Peer]:
    """Every peer, in the order of a round; PostgreSQL and ours also with ``rows`` rows already stored."""
    return [
        *ours.peers(rows), *reference.peers(), *obvious.peers(), *postgres.peers(rows), *redis.peers(), *nats.peers(),
        *syslog.peers(),
    ]  # fmt: skip


def run(peers: list[Peer], work: Work, offer: Work, runs: int, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Run every peer once in each round, with the same events in an empty folder; return figures and versions.

    If a peer cannot be started or fails, ``not_run`` says why, and it is left out of further rounds.
    """
    gc.freeze()  # the events stay until the end: the collector need not go through them during the runs
    figures: dict[str, Any] = {
        peer.name: {"guarantee": peer.guarantee, "strong": peer.strong, "runs": []} for peer in peers
    }
    versions: dict[str, str] = {}
    progress = tqdm(total=runs * len(peers), unit="run", disable=not sys.stderr.isatty())
    for number in range(runs):
        for place, peer in enumerate(peers):
            progress.update()
            figure = figures[peer.name]
            if "not_run" in figure:
                continue
            own = folder / f"{number}-{place}"
            own.mkdir()
            try:
                with peer.start(own) as running:
                    versions |= running.versions()
                    one = _one_run(peer, running, work, offer)
            except (Exception, SystemExit) as error:  # whatever one peer does, the others are measured
                figure["not_run"] = str(error).replace(f"{own}/", "") or type(error).__name__
                progress.write(f"{peer.name}: not run: {figure['not_run']}", file=sys.stderr)
            else:
                figure["runs"].append(one)
                progress.write(f"{peer.name}: {_summary(one)}", file=sys.stderr)
            shutil.rmtree(own)
            os.sync()  # what this peer has left to write must not slow the next one
    for figure in figures.values():
        if figure["runs"]:
            figure["medians"] = command.medians(figure["runs"])
    return figures, versions


def _one_run(peer: Peer, running: Running, work: Work, offer: Work) -> dict[str, Any]:
    part = work.first(max(1, work.count // peer.share))
    seconds = running.send(part)
    stored, expected = running.stored(), part.unique if peer.deduplicates else part.count
    figures: dict[str, Any] = {
        "events": part.count,
        "seconds": round(seconds, 4),
        "events_per_s": round(part.count / seconds),
        "stored": stored,
        "expected": expected,
        "exact": stored == expected,
    }
    channels = [channel for part in offer.dealt(offered.CONNECTIONS) if (channel := running.channel(part))]
    if channels:
        figures["latency"] = offered.offer(channels, RATE)
        if missing := figures["latency"]["errors"]:
            raise RuntimeError(f"{missing} of {offer.count} single events were not acked")
    return figures


def _summary(one: dict[str, Any]) -> str:
    text = f"{one['events_per_s']:,}/s, {one['stored']:,} stored, exact: {one['exact']}"
    if latency := one.get("latency"):
        text += f"; p50 {latency['p50_ms']} ms, p99 {latency['p99_ms']} ms at {RATE:g}/s"
    return text


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``peers`` to the commands of the bench."""
    one = commands.add_parser(
        "peers", help="the same events sent to other systems (first bench/peers/install and the extra peers)"
    )
    one.set_defaults(run=_peers)
    one.add_argument("--events", type=int, default=1_000_000, help="events a run (%(default)s)")
    one.add_argument("--dup", type=float, default=0.25, help="part of the events that is sent twice (%(default)s)")
    one.add_argument("--runs", type=int, default=3, help="rounds of all peers; medians count (%(default)s)")
    one.add_argument(
        "--rows",
        type=int,
        default=10_000_000,
        help="rows in the second variants of PostgreSQL and ours; 0: none (%(default)s)",
    )
    one.add_argument(
        "--only", type=lambda text: tuple(text.split(",")), help="only peers whose names begin with one of NAME,NAME…"
    )
    command.add_paths(one)


def _peers(options: argparse.Namespace) -> int:
    peers = [peer for peer in registry(options.rows) if not options.only or peer.name.startswith(options.only)]
    if not peers:
        raise SystemExit(f"no peer's name begins with {', '.join(options.only)}")
    (lines,) = workload.generate(options.events, options.dup, 1, "random").lines
    count = min(options.events, int(RATE * LATENCY_S))
    (offer,) = workload.generate(count, options.dup, 1, "random", first=options.events).lines
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as after Ctrl-C, so that no peer outlives the bench
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        Path(folder).chmod(0o711)  # PostgreSQL never runs as root and must reach its folder below
        figures, versions = run(peers, Work.of(lines), Work.of(offer), options.runs, Path(folder))
    settings = {key: str(getattr(options, key)) for key in ("events", "dup", "runs", "rows", "only")}
    settings["rate"] = f"{RATE:g}"
    described = result.describe("peers", settings, figures)
    described["versions"] |= versions
    result.write(described, options.output)
    return 0 if all(one["exact"] for figure in figures.values() for one in figure["runs"]) else 1
