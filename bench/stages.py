"""What an event costs at each stage, in microseconds: one stage after another, nothing else running.

In the server, the stages of the event loop and those of SQLite's thread run in parallel. The longer of the two sums is
the least time that an event can take; on two cores, the least is half of both sums and the sender's time together.
Texts of the wrap port take the same path, except that they have no replies.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import uvloop

from aggregator.cli.serve import GC_THRESHOLDS, SWITCH_INTERVAL_S
from aggregator.config import Config
from aggregator.event import Events
from aggregator.server.wrap_inbox import PIECE_TEXTS
from aggregator.storage.sqlite.batch import pack
from aggregator.storage.sqlite.store import Store
from aggregator.wire.lines import LineSplitter
from aggregator.wire.meaning import PIECE_LINES
from aggregator.wire.replies import encode_acks
from aggregator.wire.rules import parse_plain
from aggregator.wrap.framing import Framer
from aggregator.wrap.topic import TopicTemplate
from aggregator.wrap.wrapper import Defaults, Wrapper
from bench import command, workload

BATCH: Final = 7_000
"""About as many events as a batch has under full load."""

Take = Callable[[bytes, dict[str, float]], Events]
"""Makes events of the bytes of one read, and adds the time that each stage took to the stages."""

TEXTS: Final[dict[str, Callable[[int], bytes]]] = {"wrapped JSON": workload.json_line, "syslog": workload.syslog_line}
"""The lines sent to the wrap port, by kind."""

CHUNK_BYTES: Final = 1 << 18
"""The most that one read of uvloop returns."""


def add_command(commands: command.Commands) -> None:
    """Add ``stages`` to the commands of the bench."""
    one = commands.add_parser("stages", help="what an event costs at each stage")
    one.set_defaults(run=_run)
    one.add_argument("--events", type=int, default=1_000_000, help="events (%(default)s)")
    one.add_argument("--dup", type=float, default=0.25, help="part of the events that is sent twice (%(default)s)")
    command.add_common(one, runs=3)


def _run(options: argparse.Namespace) -> int:
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return command.repeat("stages", options, lambda number, folder: uvloop.run(_one_run(options, number, folder)))


async def _one_run(options: argparse.Namespace, number: int, folder: Path) -> dict[str, Any]:
    (lines,) = workload.generate(options.events, options.dup, 1, "random", number * options.events).lines
    events, stored = await _costs(_event_lines(), lines, folder / f"{number}.db", answers=True)
    wrapped: dict[str, Any] = {}
    exact = stored == len(set(lines))
    for name, text in TEXTS.items():
        texts = [text(place) for place in range(options.events // 4)]
        costs, stored = await _costs(_texts(), texts, folder / f"{number} {name}.db", answers=False)
        exact = exact and stored == len(texts)
        wrapped[name] = {
            **costs["event loop"],
            "SQLite's thread": costs["SQLite's thread"]["sum"],
            "times an event line": round(_whole(costs) / _whole(events), 3),
        }
    return {**events, "wrap port": wrapped, "exact": exact}


def _whole(costs: dict[str, dict[str, float]]) -> float:
    return sum(stages["sum"] for stages in costs.values())


async def _costs(take: Take, lines: list[bytes], db: Path, answers: bool) -> tuple[dict[str, dict[str, float]], int]:
    """What one of these lines costs at each stage, in microseconds; and how many events are stored at the end."""
    stream = b"".join(lines)
    loop_s: dict[str, float] = {}
    writer_s: dict[str, float] = {}
    store = await Store.open(db, Config().wal_limit_bytes)
    waiting = Events()
    try:
        for start in range(0, len(stream), CHUNK_BYTES):
            waiting += take(stream[start : start + CHUNK_BYTES], loop_s)
            if len(waiting) >= BATCH:
                await _store(store, waiting, loop_s, writer_s, answers)
                waiting = Events()
        if waiting:
            await _store(store, waiting, loop_s, writer_s, answers)
        stored = store.stored_total
    finally:
        await store.close()

    def micros(stages: dict[str, float]) -> dict[str, float]:
        per_event = {name: round(seconds / len(lines) * 1e6, 3) for name, seconds in stages.items()}
        return {**per_event, "sum": round(sum(per_event.values()), 3)}

    return {"event loop": micros(loop_s), "SQLite's thread": micros(writer_s)}, stored


def _event_lines() -> Take:
    """What the acked port does with the bytes it reads."""
    splitter = LineSplitter(Config().max_line_bytes)

    def judged(lines: Sequence[bytes | None]) -> Events:
        events = parse_plain(lines)
        assert events, "the workload has plain events only"
        return events

    return _timed("split into lines", splitter.feed, "decode, judge, digest", judged, PIECE_LINES)


def _texts() -> Take:
    """What the wrap port does with the bytes it reads."""
    framer = Framer(Config().max_line_bytes)
    wrapper = Wrapper(Defaults(TopicTemplate("app"), "127.0.0.1"))
    return _timed("set texts apart", framer.feed, "wrap, digest", wrapper.wrap, PIECE_TEXTS)


def _timed(
    cut: str, feed: Callable[[bytes], list[Any]], made: str, make: Callable[[list[Any]], Events], size: int
) -> Take:
    """Two stages: ``feed`` cuts a chunk, and ``make`` turns the pieces into events, ``size`` pieces at a time."""

    def take(chunk: bytes, loop_s: dict[str, float]) -> Events:
        events = Events()
        now = time.perf_counter()
        found = feed(chunk)
        now = _taken(loop_s, cut, now)
        for first in range(0, len(found), size):
            events += make(found[first : first + size])
        _taken(loop_s, made, now)
        return events

    return take


def _taken(stages: dict[str, float], name: str, started: float) -> float:
    """Add the time since ``started`` to a stage; return the current time."""
    now = time.perf_counter()
    stages[name] = stages.get(name, 0.0) + now - started
    return now


async def _store(
    store: Store, events: Events, loop_s: dict[str, float], writer_s: dict[str, float], answers: bool
) -> None:
    now = time.perf_counter()
    batch = store.new_batch()
    batch.add(events)
    now = _taken(loop_s, "pack, ask the filter", now)
    await store.prepare(batch)
    now = _taken(writer_s, "look up", now)
    assert batch.decision
    pack(batch.events, batch.decision.first_seq, batch.decision.duplicates, received_at=1)
    bound = _taken(loop_s, "bind", now)
    commit = await store.append(batch)
    now = _taken(writer_s, "append, commit", 2 * bound - now)  # append() binds once more, which is the loop's time
    if store.wal.due:
        await store.wal.checkpoint()
        now = _taken(writer_s, "checkpoint", now)
    await store.upkeep(quiet=False)
    now = _taken(writer_s, "flush and merge keys", now)
    if answers:
        encode_acks(events, commit.seqs, commit.duplicates, commit.offset)
        _taken(loop_s, "encode replies", now)
    await asyncio.sleep(0)
