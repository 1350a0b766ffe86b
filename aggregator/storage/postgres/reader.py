"""Everything that reads stored events: by key, in the order of each lane, by time.

An answer is read one slice at a time, so other answers can have their slices in between. There is no order between
lanes: events that are read together are sorted by when they were received.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Final

from aggregator.event import KEY_BYTES, digest
from aggregator.storage.engine import Position, Slice, StorageUnreadable, StoredEvent, Stretch, Wanted
from aggregator.storage.postgres import rows
from aggregator.storage.postgres.link import RETRY_S
from aggregator.storage.postgres.positions import Positions
from aggregator.storage.postgres.query import READ_RETRY_S, Query
from aggregator.storage.postgres.rows import Row
from aggregator.storage.postgres.schema import LANES, lane_name
from aggregator.storage.postgres.topics import Topic, Topics

SLICE_BLOCKS: Final = 4
"""Blocks in a slice: about 1,000 events, or 256 KiB."""

HEADS: Final = 64
"""How many blocks are searched at a time by their topics alone, to find the wanted ones."""

Found = tuple[list[Row], int]
"""Rows of one lane, and the number up to which that lane was searched."""


@dataclass(frozen=True, slots=True)
class _Search:
    """What to search for in a slice. It is the same for every lane."""

    wanted: Wanted
    topics: Sequence[Topic] | None
    """The wanted topics, or None if they cannot be listed."""
    limit: int
    """The most blocks of each lane."""
    background: bool = False

    def topics_in(self, lane: int) -> list[int] | None:
        """The ids of the wanted topics of a lane, or None if they cannot be listed."""
        return None if self.topics is None else [topic.id for topic in self.topics if topic.lane == lane]


class Reader:
    """Reads one database. All methods raise StorageUnreadable."""

    def __init__(self, query: Query, topics: Topics, positions: Positions) -> None:
        self._query = query
        self._topics = topics
        self._positions = positions
        self._turns = {False: asyncio.Lock(), True: asyncio.Lock()}  # first come, first served; True: background reads

    async def heads(self) -> tuple[int, list[int]]:
        """How many lanes there are now, and the last number of each known lane. All lower numbers are visible."""
        each = (
            f"coalesce((SELECT b.following FROM {lane_name(lane)}.blocks b ORDER BY b.first DESC LIMIT 1), 1) - 1"
            for lane in range(self._positions.lanes)
        )
        ((lanes, *numbers),) = await self._query.read(f"SELECT ({LANES}), {', '.join(each)}")
        return lanes, numbers

    async def event(self, topic: str, event_id: str) -> StoredEvent | None:
        """The event with this key."""
        for known in await self._topics.find([topic]):
            key = digest(topic, event_id)[:KEY_BYTES]
            for number, *columns in await self._read(rows.EVENT, known.lane, (key.hex(),)):
                row = Row(*columns)
                found = rows.stretch(
                    self._positions, known.lane, row, await self._topics.names(row.ids), None, number - 1, number
                )
                if not found.seqs:
                    raise StorageUnreadable(f"cannot read: event {number} is missing")
                return StoredEvent(found.seqs[0], found.received_at, found.json[0])
        return None

    async def read(self, wanted: Wanted, after: Position, until: Position, background: bool, slices: int) -> Slice:
        """As ``Engine.read``."""
        start, end = self._positions.vector(after), self._positions.vector(until)
        left = [lane for lane in range(self._positions.lanes) if start[lane] < end[lane]]
        if not left:
            # One position may have two forms: 0 and "0.0", or without a lane added since. Return the form of ``until``.
            return Slice((), until if start == end else after)
        async with self._turns[background]:
            limit = max(1, slices * SLICE_BLOCKS // len(left))
            search = _Search(wanted, await self._topics.listed(wanted), limit, background)
            numbers, gaps = list(start), list(start)
            stretches: list[Stretch] = []
            for lane in left:
                found, looked, oldest = await self._next(search, lane, start[lane], end[lane])
                if oldest is None or oldest > start[lane] + 1:  # the beginning is no longer stored
                    gaps[lane] = end[lane] if oldest is None else min(end[lane], oldest - 1)
                part, numbers[lane] = await self._stretches(wanted, lane, found, gaps[lane], end[lane], looked)
                stretches += part
        if len(left) > 1:
            stretches.sort(key=lambda one: one.received_at)
        gap = self._positions.shown(gaps) if tuple(gaps) != start else None
        reached = tuple(map(max, numbers, gaps))
        return Slice(stretches, until if reached == end else self._positions.shown(reached), gap)

    async def _next(self, search: _Search, lane: int, after: int, until: int) -> tuple[list[Row], int, int | None]:
        """The next blocks of a lane, how far it was searched, and the oldest number in it.

        The connection may lead to a former primary, which lacks everything that was stored since. If a lane ends before
        ``until``, it is read again through a new connection.
        """
        give_up = time.monotonic() + READ_RETRY_S
        while True:
            found, looked = await self._forwards(search, lane, after, until)
            if found:
                ends = found[-1][-2:]
            else:
                (ends,) = await self._read(f"SELECT {rows.ENDS}", lane, None, search.background)
            oldest, newest = ends
            if looked < until or (newest or 0) >= until:
                return found, looked, oldest
            if time.monotonic() > give_up:
                raise StorageUnreadable(f"cannot read: lane {lane} ends at {newest} here, and {until} was stored")
            await self._query.renew(search.background)
            await asyncio.sleep(RETRY_S)

    async def _forwards(self, search: _Search, lane: int, after: int, until: int) -> Found:
        """The next blocks with wanted topics in a lane."""
        parameters: dict[str, Any] = {"after": after, "until": until, "limit": search.limit, "heads": HEADS}
        parameters["topics"] = topics = search.topics_in(lane)
        if topics is None and not search.wanted.all_topics:
            return await self._scan(search, lane, parameters)
        if topics == []:
            return [], until
        statement = rows.FORWARDS if topics is None else rows.OF_TOPICS_FORWARDS
        found = list(starmap(Row, await self._read(statement, lane, parameters, search.background)))
        return found, until if len(found) < search.limit else min(until, found[-1].following - 1)

    async def _scan(self, search: _Search, lane: int, parameters: dict[str, Any]) -> Found:
        """As ``_forwards``, but looks at the topics of each block."""
        heads = await self._read(rows.HEADS_FORWARDS, lane, parameters, search.background)
        looked = parameters["until"]
        if len(heads) == HEADS:
            looked = heads.pop()[0] - 1  # the end of the last block is not known
        these: list[int] = []
        for first in await self._with_wanted(search.wanted, heads):
            if len(these) == search.limit:
                looked = first - 1
                break
            these.append(first)
        return await self._these(lane, these, search.background), looked

    async def read_back(self, wanted: Wanted, before: Position) -> Slice:
        """As ``Engine.read_back``: the blocks that were received last, over all lanes."""
        numbers = list(self._positions.vector(before))
        async with self._turns[False]:
            search = _Search(wanted, await self._topics.listed(wanted), SLICE_BLOCKS)
            each: list[tuple[Row, int]] = []
            looked = [0] * len(numbers)
            for lane in range(self._positions.lanes):
                if numbers[lane]:
                    found, looked[lane] = await self._backwards(search, lane, numbers[lane])
                    each += [(row, lane) for row in found]
            each.sort(key=lambda one: (one[0].received_at, one[0].first), reverse=True)
            stretches: list[Stretch] = []
            for row, lane in each[:SLICE_BLOCKS]:
                part, _ = await self._stretches(wanted, lane, [row], 0, numbers[lane], 0)
                stretches += part
        kept = each[SLICE_BLOCKS:]
        for lane, number in enumerate(looked):
            left = [row for row, its_lane in kept if its_lane == lane]
            numbers[lane] = left[0].following - 1 if left else number
        return Slice(stretches, self._positions.shown(numbers) if any(numbers) else 0)

    async def _backwards(self, search: _Search, lane: int, before: int) -> Found:
        """The blocks with wanted topics in a lane, up to ``before``, newest first."""
        parameters: dict[str, Any] = {"before": before, "limit": search.limit, "heads": HEADS}
        parameters["topics"] = topics = search.topics_in(lane)
        if topics is None and not search.wanted.all_topics:
            return await self._scan_back(search, lane, parameters)
        if topics == []:
            return [], 0
        statement = rows.BACKWARDS if topics is None else rows.OF_TOPICS_BACKWARDS
        found = list(starmap(Row, await self._read(statement, lane, parameters)))
        return found, 0 if len(found) < search.limit else found[-1].first - 1

    async def _scan_back(self, search: _Search, lane: int, parameters: dict[str, Any]) -> Found:
        heads = await self._read(rows.HEADS_BACKWARDS, lane, parameters)
        looked = heads[-1][0] - 1 if len(heads) == HEADS else 0
        these = await self._with_wanted(search.wanted, heads)
        if len(these) >= search.limit:
            these = these[: search.limit]
            looked = these[-1] - 1
        return (await self._these(lane, these))[::-1], looked

    async def seek(self, received_at: int) -> Position:
        """As ``Engine.seek``."""
        each = ", ".join(f"(SELECT low FROM {lane_name(lane)}.seek(%(at)s))" for lane in range(self._positions.lanes))
        ((*numbers,),) = await self._query.read(f"SELECT {each}", {"at": received_at})
        return self._positions.shown(numbers)

    # --- rows

    async def _with_wanted(self, wanted: Wanted, heads: Sequence[tuple[int, bytes]]) -> list[int]:
        """The first numbers of the blocks that have a wanted topic."""
        each = [(first, rows.ids_in(first, topics)) for first, topics in heads]
        names = await self._topics.names(id for _, ids in each for id in ids)
        return [first for first, ids in each if any(wanted.wants_topic(names.get(id, "")) for id in ids)]

    async def _stretches(
        self, wanted: Wanted, lane: int, found: Sequence[Row], after: int, until: int, looked: int
    ) -> tuple[list[Stretch], int]:
        """The events of rows, and how far the lane was read. Events before a damaged block are returned."""
        stretches: list[Stretch] = []
        for row in found:
            try:
                names = await self._topics.names(row.ids)
                stretch = rows.stretch(self._positions, lane, row, names, wanted, after, until)
            except StorageUnreadable:
                if not stretches:
                    raise
                return stretches, row.first - 1
            if stretch.seqs:
                stretches.append(stretch)
        return stretches, looked

    async def _these(self, lane: int, these: Sequence[int], background: bool = False) -> list[Row]:
        if not these:
            return []
        return list(starmap(Row, await self._read(rows.THESE, lane, {"these": list(these)}, background)))

    async def _read(self, statement: str, lane: int, parameters: Any = None, background: bool = False) -> list[Any]:
        return await self._query.read(statement.format(lane=lane_name(lane)), parameters, background)
