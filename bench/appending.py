"""Appending batches to PostgreSQL: by our engine, as the server's consumer does it, and by psycopg alone.

The yardstick is psycopg alone: one ``INSERT … ON CONFLICT DO NOTHING`` for each batch, with arrays in PostgreSQL's
binary format as arguments. Both encode their arguments within the measured time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import uvloop

from aggregator import storage
from aggregator.config import Config
from aggregator.event import Event, Events
from aggregator.storage.engine import AnyEngine, Commit
from bench import workload
from bench.cluster import Cluster
from bench.peers import postgres
from bench.peers.peer import Work


class Part:
    """Events that are sent together, and how many of them are new."""

    def __init__(self, count: int, first: int, oldest: int, duplicates: float) -> None:
        made = workload.generate(count, duplicates, 1, "random", first, oldest)
        self.work = Work.of(made.lines[0])
        self.unique = made.unique
        self.count = count

    def events(self, batch: int) -> list[Events]:
        """The events as the server has them when it fills a batch."""
        return [
            Events.of(Event.of(one.topic.decode(), one.event_id.decode(), one.line[:-1]) for one in events)
            for events in self.work.batches(batch)
        ]


def ours(cluster: Cluster, database: str, part: Part, batch: int, lanes: int) -> dict[str, Any]:
    """Append everything by our engine, with as many batches at once as it accepts."""
    config = Config(db=cluster.url(database), lanes=lanes, standbys=cluster.standbys)
    with _watched(cluster, part) as figures:
        figures["seconds"], stored = uvloop.run(_append_all(config, part.events(batch)))
    figures["exact"] = stored == part.unique
    return _rated(figures, part)


async def _append_all(config: Config, batches: list[Events]) -> tuple[float, int]:
    engine = await storage.open(config)
    try:
        started = time.perf_counter()
        stored = 0
        under_way: deque[asyncio.Task[Commit]] = deque()
        for events in batches:
            batch = engine.new_batch()
            batch.add(events)
            await engine.prepare(batch)
            if len(under_way) == engine.appends_at_once:
                stored += _stored(await under_way.popleft())
            under_way.append(asyncio.create_task(engine.append(batch)))
            await asyncio.sleep(0)  # so that the batches are handed over in order
        for one in under_way:
            stored += _stored(await one)
        return time.perf_counter() - started, stored
    finally:
        await engine.close()


def _stored(commit: Commit) -> int:
    return len(commit.seqs) - len(commit.duplicates)


async def commits(engine: AnyEngine, count: int, first: int) -> list[float]:
    """Commit ``count`` single events; return the seconds that each commit took."""
    times = []
    for number in range(first, first + count):
        line = workload.line(number, "random")[:-1]
        batch = engine.new_batch()
        batch.add(Events.of([Event.of(workload.topic(number), workload.event_id(number, "random"), line)]))
        started = time.perf_counter()
        await engine.append(batch)
        times.append(time.perf_counter() - started)
    return times


def make_plain(cluster: Cluster, database: str) -> None:
    """Create the table of the yardstick."""
    cluster.ask(postgres.TABLE, database)
    cluster.ask(postgres.KEY, database)


def plain(cluster: Cluster, database: str, part: Part, batch: int, connections: int = 1) -> dict[str, Any]:
    """Insert everything by psycopg alone, over this many connections."""
    shares = [list(one.batches(batch)) for one in part.work.dealt(connections)]
    links = [cluster.connect(database) for _ in shares]
    count = "SELECT count(*) FROM events"
    before = cluster.ask(count, database) if part.count < SMALL else None
    try:
        for link in links:
            link.pgconn.prepare(
                b"insert", postgres.INSERT, [postgres.TEXT_ARRAY, postgres.TEXT_ARRAY, postgres.JSON_ARRAY]
            )
        with _watched(cluster, part) as figures, ThreadPoolExecutor(len(links)) as threads:
            started = time.perf_counter()
            inserted = sum(threads.map(_insert_all, links, shares))
            figures["seconds"] = time.perf_counter() - started
    finally:
        for link in links:
            link.close()
    figures["exact"] = inserted == part.unique
    assert before is None or cluster.ask(count, database) == before + part.unique
    return _rated(figures, part)


SMALL = 100_000
"""Below so many events, the yardstick's own count is checked too."""


def _insert_all(link: Any, batches: list[Any]) -> int:
    inserted = 0
    for batch in batches:
        result = link.pgconn.exec_prepared(b"insert", postgres.arrays(batch), [1] * 3)
        if result.error_message:
            raise RuntimeError(result.error_message.decode())
        inserted += result.command_tuples
    return inserted


@contextmanager
def _watched(cluster: Cluster, part: Part) -> Iterator[dict[str, Any]]:
    """Start right after a checkpoint, the worst moment for an index: each changed page goes to WAL as a whole."""
    cluster.ask("CHECKPOINT")
    figures: dict[str, Any] = {"events": part.count}
    written = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint"
    before = cluster.ask(written)
    yield figures
    figures["wal_bytes_per_event"] = round((cluster.ask(written) - before) / part.count)


def _rated(figures: dict[str, Any], part: Part) -> dict[str, Any]:
    figures["events_per_s"] = round(part.count / figures["seconds"])
    figures["seconds"] = round(figures["seconds"], 4)
    return figures
