"""What an event costs at each stage, in microseconds: one stage after another, nothing else running.

In the server the event loop's stages and those of SQLite's thread run side by side; the longer of the two sums is the
least time an event can take, and half of both and the sender's is what two cores leave.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import sys
import time
from pathlib import Path
from typing import Any, Final

import uvloop

from aggregator.cli.serve import GC_THRESHOLDS, SWITCH_INTERVAL_S
from aggregator.config import Config
from aggregator.event import Events
from aggregator.storage.sqlite.batch import pack
from aggregator.storage.sqlite.store import Store
from aggregator.wire.lines import LineSplitter
from aggregator.wire.meaning import PIECE_LINES
from aggregator.wire.replies import encode_acks
from aggregator.wire.rules import parse_plain
from bench import command, workload

BATCH: Final = 7_000
"""Events in a batch under full load, about."""

CHUNK_BYTES: Final = 1 << 18
"""What one read of uvloop's brings at most."""


def add_command(commands: command.Commands) -> None:
    """Add ``stages`` to the commands of the bench."""
    one = commands.add_parser("stages", help="what an event costs at each stage")
    one.set_defaults(run=_run)
    one.add_argument("--events", type=int, default=1_000_000, help="(%(default)s)")
    one.add_argument("--dup", type=float, default=0.25, help="part of them sent twice (%(default)s)")
    command.add_common(one, runs=3)


def _run(options: argparse.Namespace) -> int:
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return command.repeat("stages", options, lambda number, folder: uvloop.run(_one_run(options, number, folder)))


async def _one_run(options: argparse.Namespace, number: int, folder: Path) -> dict[str, Any]:
    (lines,) = workload.generate(options.events, options.dup, 1, "random", number * options.events).lines
    stream = b"".join(lines)
    count = len(lines)
    loop_s: dict[str, float] = {}
    writer_s: dict[str, float] = {}

    def taken(stages: dict[str, float], name: str, started: float) -> float:
        now = time.perf_counter()
        stages[name] = stages.get(name, 0.0) + now - started
        return now

    config = Config()
    splitter = LineSplitter(config.max_line_bytes)
    store = await Store.open(folder / f"{number}.db", config.wal_limit_bytes)
    waiting = Events()
    try:
        for start in range(0, len(stream), CHUNK_BYTES):
            chunk = stream[start : start + CHUNK_BYTES]
            now = time.perf_counter()
            found = splitter.feed(chunk)
            now = taken(loop_s, "split into lines", now)
            for first in range(0, len(found), PIECE_LINES):
                events = parse_plain(found[first : first + PIECE_LINES])
                assert events, "the workload has plain events only"
                waiting += events
            taken(loop_s, "decode, judge, digest", now)
            if len(waiting) >= BATCH:
                await _store(store, waiting, loop_s, writer_s, taken)
                waiting = Events()
        if waiting:
            await _store(store, waiting, loop_s, writer_s, taken)
        stored = store.stored_total
    finally:
        await store.close()

    def micros(stages: dict[str, float]) -> dict[str, float]:
        per_event = {name: round(seconds / count * 1e6, 3) for name, seconds in stages.items()}
        return {**per_event, "sum": round(sum(per_event.values()), 3)}

    unique = len(set(itertools.chain(lines)))
    return {"event loop": micros(loop_s), "SQLite's thread": micros(writer_s), "exact": stored == unique}


async def _store(
    store: Store, events: Events, loop_s: dict[str, float], writer_s: dict[str, float], taken: Any
) -> None:
    now = time.perf_counter()
    batch = store.new_batch()
    batch.add(events)
    now = taken(loop_s, "pack, ask the filter", now)
    await store.prepare(batch)
    now = taken(writer_s, "look up", now)
    assert batch.decision
    pack(batch.events, batch.decision.first_seq, batch.decision.duplicates, received_at=1)
    bound = taken(loop_s, "bind", now)
    commit = await store.append(batch)
    now = taken(writer_s, "append, commit", 2 * bound - now)  # it binds again, which is the loop's
    if store.wal.due:
        await store.wal.checkpoint()
        now = taken(writer_s, "checkpoint", now)
    await store.upkeep(quiet=False)
    now = taken(writer_s, "flush and merge keys", now)
    encode_acks(events, commit.seqs, commit.duplicates, commit.offset)
    taken(loop_s, "encode replies", now)
    await asyncio.sleep(0)
