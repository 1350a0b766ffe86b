"""A second engine, over a dict. It shares nothing with SQLite but the interface between the server and its engine.

It differs from SQLite wherever an engine may. It numbers events in two lanes, so the seqs of a batch are not a range.
Two batches may be in flight, and the later one may be stored first. A position says how far each lane was read, as in
"17.20". Its metrics and troubles have their own names. It keeps nothing when the process ends.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from aggregator.event import Events
from aggregator.metric import Metric
from aggregator.storage.engine import (
    Commit,
    Cursor,
    Position,
    Slice,
    StorageFailed,
    StorageFull,
    StoredEvent,
    Stretch,
    Topic,
    Wanted,
)

LANES: Final = 2

SLICE_EVENTS: Final = 50
"""Events that one slice looks at: few, so that most answers take several slices."""

Key = tuple[str, str]
Lanes = tuple[int, ...]
"""The seq that was read last in each lane."""

START: Final[Lanes] = (0,) * LANES


@dataclass(frozen=True, slots=True)
class _Kept:
    """An event at its place in the order of commits."""

    topic: str
    event: StoredEvent
    behind: Lanes
    """The position of a reader that has read up to and including this event."""

    @property
    def lane(self) -> int:
        return self.event.seq % LANES


class DictBatch:
    """Events in the order of their arrival."""

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
    """Keeps events in memory. The appends take the times ``write_s`` in turn, so that one append may overtake another.

    A key that is in flight is not a duplicate yet. A batch waits while another batch with one of its keys is in flight,
    because only the end of that batch shows whether the key is stored.
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
        self._order: list[_Kept] = []
        self._cursors: dict[str, Cursor] = {}
        self._received_at = 0
        self._last = [0] * LANES  # the last number that each lane has given
        self._in_flight: dict[Key, asyncio.Event] = {}  # set when the append has ended, stored or not
        self._closed = False
        self.store_id = secrets.token_hex(8)

    @property
    def stored_total(self) -> int:
        return len(self._events)

    @property
    def topics_total(self) -> int:
        return len(self._topics)

    shared = False

    async def count(self) -> None:
        """There are no other servers."""

    async def look(self) -> None:
        """There are no other servers."""

    async def news(self) -> None:
        await asyncio.Event().wait()

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
        """Seqs are given here and not earlier, so that they grow in the order of commits."""
        self._received_at = now = max(self._received_at, time.time_ns() // 1_000_000)
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
                self._order.append(_Kept(event.topic, stored, self._head))
                self._size_bytes += len(event.json)
            else:
                duplicates[position] = older.seq
        return Commit(seqs, duplicates, now)

    async def probe(self) -> None:
        self._check_space(DictBatch())

    async def verify(self) -> None:
        """Nothing outside this process could change."""

    upkeep_due = False
    upkeep_left = False

    async def upkeep(self, quiet: bool) -> bool:
        """A dict is always in order."""
        return False

    async def event(self, topic: str, event_id: str) -> StoredEvent | None:
        return self._events.get((topic, event_id))

    # --- positions

    @property
    def _head(self) -> Lanes:
        return tuple(last and last * LANES + lane for lane, last in enumerate(self._last))

    @property
    def head(self) -> Position:
        return _shown(self._head)

    def parse_position(self, text: str) -> Position | None:
        """A position; or the seq of an event, which means the position after it in the order of commits."""
        if re.fullmatch(r"[0-9]{1,18}\.[0-9]{1,18}", text):
            return text
        if not re.fullmatch(r"[0-9]{1,18}", text):
            return None
        seq = int(text)
        known = next((kept.behind for kept in self._order if kept.event.seq == seq), None)
        if known is None and seq <= max(self._head):  # a number that no event has
            known = tuple(min(seq, last) for last in self._head)
        return _shown((seq,) * LANES if known is None else known)

    def advance(self, position: Position, seqs: Sequence[int]) -> Position:
        lanes = list(_lanes(position))
        for seq in seqs:
            lanes[seq % LANES] = seq
        return _shown(lanes)

    def distance(self, earlier: Position, later: Position) -> int:
        pairs = zip(_lanes(earlier), _lanes(later), strict=True)
        return sum(max(0, (end - start) // LANES) for start, end in pairs)

    def earlier(self, one: Position, other: Position) -> Position:
        return _shown(map(min, _lanes(one), _lanes(other)))

    def later(self, one: Position, other: Position) -> Position:
        return _shown(map(max, _lanes(one), _lanes(other)))

    def retreat(self, position: Position, seqs: Sequence[int]) -> Position:
        lanes = list(_lanes(position))
        for seq in seqs:
            lanes[seq % LANES] = max(0, seq - LANES)
        return _shown(lanes)

    # --- reading

    async def read(
        self, wanted: Wanted, after: Position, until: Position, background: bool = False, slices: int = 1
    ) -> Slice:
        start, end = _lanes(after), _lanes(until)
        there = [kept for kept in self._order if start[kept.lane] < kept.event.seq <= end[kept.lane]]
        looked = there[:SLICE_EVENTS]
        position = until if looked == there else self.advance(after, [kept.event.seq for kept in looked])
        return Slice(list(_stretches(wanted, looked)), position)

    async def read_back(self, wanted: Wanted, before: Position) -> Slice:
        lanes = list(_lanes(before))
        there = [kept for kept in self._order if kept.event.seq <= lanes[kept.lane]]
        looked = there[-SLICE_EVENTS:]
        for kept in reversed(looked):
            lanes[kept.lane] = kept.event.seq - LANES
        return Slice(list(_stretches(wanted, looked))[::-1], 0 if looked == there else _shown(lanes))

    async def seek(self, received_at: int) -> Position:
        before = START
        for kept in self._order:
            if kept.event.received_at >= received_at:
                return _shown(before)
            before = kept.behind
        return self.head

    async def cursors(self) -> list[Cursor]:
        return list(self._cursors.values())

    async def save_cursors(self, changed: Sequence[Cursor], gone: Sequence[str]) -> Collection[str]:
        self._check_space(DictBatch())
        self._cursors |= {cursor.name: cursor for cursor in changed}
        for name in gone:
            self._cursors.pop(name, None)
        return ()

    async def claim_cursor(self, cursor: Cursor, seen: str | None) -> Cursor | None:
        raise NotImplementedError

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


def _lanes(position: Position) -> Lanes:
    return START if position == 0 else tuple(map(int, str(position).split(".")))


def _shown(lanes: Iterable[int]) -> Position:
    return ".".join(map(str, lanes))


def _stretches(wanted: Wanted, looked: Sequence[_Kept]) -> Iterator[Stretch]:
    """The wanted events, in the order of commits. A stretch ends where the lane changes, because its seqs must rise."""
    found = [kept for kept in looked if wanted.wants_topic(kept.topic)]
    for (_, received_at), group in itertools.groupby(found, lambda kept: (kept.lane, kept.event.received_at)):
        events = [kept.event for kept in group]
        yield Stretch([event.seq for event in events], [event.json for event in events], received_at)
