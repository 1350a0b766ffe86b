"""A second engine, over a dict, which shares nothing with SQLite but the seam.

It is different wherever an engine may be. It numbers in two lanes, so the seqs of a batch are no range. Two batches may
be on their way, and the later one may be stored first. What it says of itself is in its own words. It keeps nothing
when the process ends.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Final
from zlib import crc32

from aggregator.event import Events
from aggregator.metric import Metric
from aggregator.storage.engine import Commit, StorageFailed, StorageFull, StoredEvent, Topic

LANES: Final = 2

Key = tuple[str, str]


class DictBatch:
    """Events in the order in which they came."""

    def __init__(self) -> None:
        self.events = Events()

    def __len__(self) -> int:
        return len(self.events)

    @property
    def size_bytes(self) -> int:
        return self.events.size_bytes

    @property
    def keys(self) -> Iterator[Key]:
        return zip(self.events.topics, self.events.event_ids, strict=True)

    def add(self, events: Events) -> None:
        self.events += events


class DictEngine:
    """Keeps events in memory. ``write_s`` is how long each append takes, in turns, so that one may overtake another.

    A key that is in flight is no duplicate yet. A batch waits while another batch with one of its keys is on its way,
    because only then is it known whether the key is stored.
    """

    name = "dict"
    version = "2"
    location = "memory"
    appends_at_once = 2

    def __init__(self, write_s: Sequence[float] = (0.002, 0.0), limit_bytes: int = 1 << 30) -> None:
        self._write_s = itertools.cycle(write_s)
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._events: dict[Key, StoredEvent] = {}
        self._topics: dict[str, list[StoredEvent]] = {}
        self._last = [0] * LANES  # the number that each lane has given last
        self._in_flight: dict[Key, asyncio.Event] = {}  # set when its batch is stored, or not
        self._closed = False

    @property
    def stored_total(self) -> int:
        return len(self._events)

    @property
    def topics_total(self) -> int:
        return len(self._topics)

    def new_batch(self) -> DictBatch:
        return DictBatch()

    async def prepare(self, batch: DictBatch) -> None:
        """There is nothing to prepare."""

    async def append(self, batch: DictBatch) -> Commit:
        keys = set(batch.keys)
        while rivals := {self._in_flight[key] for key in keys & self._in_flight.keys()}:
            for rival in rivals:
                await rival.wait()
        settled = asyncio.Event()
        self._in_flight |= dict.fromkeys(keys, settled)
        try:
            await asyncio.sleep(next(self._write_s))
            self._check_space(batch)
            return self._store(batch)
        finally:
            for key in keys:
                del self._in_flight[key]
            settled.set()

    def _check_space(self, batch: DictBatch) -> None:
        if self._closed:
            raise StorageFailed("the dict is closed")
        if self._size_bytes + batch.size_bytes > self._limit_bytes:
            raise StorageFull("no room left in the dict")

    def _store(self, batch: DictBatch) -> Commit:
        """Seqs are given at this moment, and not before, so that they grow in the order of commits."""
        now = time.time_ns() // 1_000_000
        seqs: list[int] = []
        duplicates: dict[int, int] = {}
        for position, event in enumerate(batch.events):
            lane = crc32(event.topic.encode()) % LANES
            self._last[lane] += 1
            seq = self._last[lane] * LANES + lane
            seqs.append(seq)
            stored = StoredEvent(seq, now, event.json)
            older = self._events.setdefault((event.topic, event.event_id), stored)
            if older is stored:
                self._topics.setdefault(event.topic, []).append(stored)
                self._size_bytes += len(event.json)
            else:
                duplicates[position] = older.seq
        return Commit(seqs, duplicates)

    async def probe(self) -> None:
        self._check_space(DictBatch())

    async def verify(self) -> None:
        """There is nothing outside of this process that could change."""

    upkeep_due = False
    upkeep_left = False

    async def upkeep(self, quiet: bool) -> bool:
        """A dict is always in order."""
        return False

    async def event(self, topic: str, event_id: str) -> StoredEvent | None:
        return self._events.get((topic, event_id))

    async def events(self, topic: str, limit: int, after: int | None, max_bytes: int) -> tuple[list[StoredEvent], bool]:
        stored = self._topics.get(topic, [])
        wanted = stored[::-1] if after is None else [event for event in stored if event.seq > after]
        found = wanted[:limit]
        sizes = itertools.accumulate(len(event.json) for event in found)
        fitting = max(1, sum(size <= max_bytes for size in sizes))
        return found[:fitting], fitting < len(found)

    async def topics(self, limit: int, after: str) -> list[Topic]:
        names = sorted(name for name in self._topics if name > after)
        return [Topic(name, len(self._topics[name]), self._topics[name][-1].seq) for name in names[:limit]]

    def gauges(self) -> Iterator[Metric]:
        yield Metric("kept", self.stored_total, "events in the dict", in_health=True)
        yield Metric("kept_bytes", self._size_bytes, "bytes of the same events")
        yield Metric("lanes", {"even": self._last[0], "odd": self._last[1]}, "numbers that each lane has given")

    def troubles(self) -> dict[str, str | None]:
        return {"room": "the dict is half full" if self._size_bytes > self._limit_bytes / 2 else None}

    async def close(self) -> None:
        self._closed = True
