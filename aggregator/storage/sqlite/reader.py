"""Everything that reads stored events: by key, in the order of seqs, by time; and the names of topics.

An answer is read a slice at a time, and other answers have their slices in between: each of many large answers holds up
a small one by one slice only. Each slice consists of statements that end. No statement is held open until the next
slice, because that would keep SQLite from restarting the WAL.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import orjson

from aggregator.event import digest
from aggregator.storage.engine import Cursor, Slice, StorageUnreadable, StoredEvent, Stretch, Topic, Wanted
from aggregator.storage.sqlite import block, postings, schema
from aggregator.storage.sqlite.database import Database
from aggregator.storage.sqlite.ledger import Ledger
from aggregator.storage.sqlite.plans import Plans
from aggregator.storage.sqlite.writer import Writer

SLICE_BLOCKS: Final = 4
"""Blocks in a slice: about 1,000 events, or 256 KiB, half a millisecond of the event loop."""

HEADS: Final = 64
"""How many blocks are read without their events, only for their topics, to find the wanted blocks."""

MAX_RECEIVED_AT: Final = 253_402_300_800_000
"""The year 10000, which no clock has reached, and which cannot be shown."""

_ROWS = f"SELECT {schema.BLOCK_COLUMNS} FROM blocks WHERE first_seq"
_BLOCK_OF = f"{_ROWS} <= :seq ORDER BY first_seq DESC LIMIT 1"
_FORWARDS = f"{_ROWS} {postings.PAST_AFTER} ORDER BY first_seq LIMIT :blocks"
_BACKWARDS = f"{_ROWS} <= :before ORDER BY first_seq DESC LIMIT :blocks"
_HEADS = "SELECT first_seq, topics FROM blocks WHERE first_seq"
_HEADS_FORWARDS = f"{_HEADS} {postings.PAST_AFTER} ORDER BY first_seq LIMIT :heads"
_HEADS_BACKWARDS = f"{_HEADS} <= :before ORDER BY first_seq DESC LIMIT :heads"
_THESE = f"{_ROWS} IN (SELECT value FROM json_each(:these)) ORDER BY first_seq"
_OLDEST = "SELECT min(first_seq) FROM blocks"
_PROBE = "SELECT first_seq, received_at FROM blocks WHERE first_seq <= ? ORDER BY first_seq DESC LIMIT 1"
_TOPICS = "SELECT name, stored, last_seq FROM topics WHERE name > ? ORDER BY name LIMIT ?"
_CURSORS = "SELECT name, interest, acked, acked_at FROM cursors"


class Reader:
    """Reads one database, through connections that never wait for a commit. All methods raise StorageUnreadable."""

    def __init__(self, database: Database, ledger: Ledger, writer: Writer) -> None:
        self._database = database
        self._ledger = ledger
        self._writer = writer
        self._plans = Plans(writer)
        self._turns = {False: asyncio.Lock(), True: asyncio.Lock()}  # first come, first served; True: in the background

    async def event(self, topic: str, event_id: str) -> StoredEvent | None:
        """The event with this key."""
        try:
            seq = await self._ledger.seq_of(digest(topic, event_id))
        except sqlite3.Error as error:
            raise StorageUnreadable(f"cannot read: {error}") from error
        if seq is None:
            return None
        for row in await self._rows(_BLOCK_OF, {"seq": seq}):
            stretch = _stretch(row, None)
            if seq in stretch.seqs:
                return StoredEvent(seq, stretch.received_at, stretch.json[stretch.seqs.index(seq)])
        raise StorageUnreadable(f"cannot read: event {seq} is missing")

    async def read(self, wanted: Wanted, after: int, until: int, background: bool, slices: int) -> Slice:
        """As ``Engine.read``."""
        if after >= until:
            return Slice((), after)
        async with self._turns[background]:
            rows, position = await self._forwards(wanted, after, until, background, slices * SLICE_BLOCKS)
            oldest = rows[0][-1] if rows else (await self._rows(_OLDEST, (), background))[0][0]
        gap = None
        if oldest is None or oldest > after + 1:
            after = gap = until if oldest is None else min(until, oldest - 1)
        stretches: list[Stretch] = []
        for number, row in enumerate(rows):
            try:
                stretch = _stretch(row, wanted, after, until)
            except StorageUnreadable:
                if not number:
                    raise
                position = row[0] - 1  # the events before a damaged block are read
                break
            if stretch.seqs:
                stretches.append(stretch)
        else:
            if position is None:
                position = min(until, _last_seq(rows[-1]))
        return Slice(stretches, max(after, position), gap)

    async def _forwards(
        self, wanted: Wanted, after: int, until: int, background: bool, blocks: int
    ) -> tuple[list[sqlite3.Row], int | None]:
        """The rows of the next blocks, and how far the read has looked: None means to the end of the last block."""
        parameters: dict[str, Any] = {"after": after, "until": until, "blocks": blocks, "heads": HEADS}
        topics = await self._plans.topics(wanted, partial(self._rows, background=background))
        if topics is not None:
            parameters["names"] = orjson.dumps([name for _, name in topics]).decode()
            sql = postings.blocks_of([id for id, _ in topics], backwards=False)
        elif wanted.all_topics:
            sql = _FORWARDS
        else:
            return await self._scan(wanted, parameters, background)
        rows = await self._rows(sql, parameters, background)
        return rows, until if len(rows) < blocks else None

    async def _scan(
        self, wanted: Wanted, parameters: dict[str, Any], background: bool
    ) -> tuple[list[sqlite3.Row], int]:
        """The next blocks that have wanted topics, and how far the read has looked."""
        heads = await self._rows(_HEADS_FORWARDS, parameters, background)
        position = parameters["until"]
        if len(heads) == HEADS:
            position = heads.pop()[0] - 1  # it is not known where this block ends
        these: list[int] = []
        for first_seq, topics in heads:
            if _has_wanted(wanted, topics):
                if len(these) == parameters["blocks"]:
                    position = first_seq - 1
                    break
                these.append(first_seq)
        return await self._these(these, background), position

    async def read_back(self, wanted: Wanted, before: int) -> Slice:
        """As ``Engine.read_back``."""
        parameters: dict[str, Any] = {"before": before, "blocks": SLICE_BLOCKS, "heads": HEADS}
        async with self._turns[False]:
            topics = await self._plans.topics(wanted, self._rows)
            if topics is None and not wanted.all_topics:
                rows, position = await self._scan_back(wanted, parameters)
            else:
                sql = _BACKWARDS
                if topics is not None:
                    parameters["names"] = orjson.dumps([name for _, name in topics]).decode()
                    sql = postings.blocks_of([id for id, _ in topics], backwards=True)
                rows = await self._rows(sql, parameters)
                position = 0 if len(rows) < SLICE_BLOCKS else rows[-1][0] - 1
        return Slice([stretch for row in rows if (stretch := _stretch(row, wanted, 0, before)).seqs], position)

    async def _scan_back(self, wanted: Wanted, parameters: dict[str, Any]) -> tuple[list[sqlite3.Row], int]:
        heads = await self._rows(_HEADS_BACKWARDS, parameters)
        position = heads[-1][0] - 1 if len(heads) == HEADS else 0
        these: list[int] = []
        for first_seq, topics in heads:
            if _has_wanted(wanted, topics):
                these.append(first_seq)
                if len(these) == SLICE_BLOCKS:
                    position = first_seq - 1
                    break
        return (await self._these(these))[::-1], position

    async def seek(self, received_at: int) -> int:
        """As ``Engine.seek``, by bisection, because ``received_at`` never decreases."""
        low, high = 0, self._writer.head  # the position is in between
        async with self._turns[False]:
            while low < high:
                middle = (low + high + 1) // 2
                found = await self._rows(_PROBE, (middle,))
                if found and found[0][1] >= received_at:
                    high = found[0][0] - 1
                else:
                    low = middle
        return low

    async def topics(self, limit: int, after: str) -> list[Topic]:
        """As ``Engine.topics``."""
        async with self._turns[False]:
            return list(itertools.starmap(Topic, await self._rows(_TOPICS, (after, limit))))

    async def cursors(self) -> list[Cursor]:
        """As ``Engine.cursors``."""
        return list(itertools.starmap(Cursor, await self._rows(_CURSORS, ())))

    async def _these(self, first_seqs: Sequence[int], background: bool = False) -> list[sqlite3.Row]:
        if not first_seqs:
            return []
        return await self._rows(_THESE, {"these": orjson.dumps(first_seqs).decode()}, background)

    async def _rows(self, sql: str, parameters: Any, background: bool = False) -> list[sqlite3.Row]:
        try:
            return await self._database.read(sql, parameters, background)
        except sqlite3.Error as error:
            raise StorageUnreadable(f"cannot read: {error}") from error


def _has_wanted(wanted: Wanted, topics: Any) -> bool:
    """Whether a block may have a wanted topic. A damaged block may: then reading the block reports the damage."""
    try:
        names = orjson.loads(topics)
        return not names or any(map(wanted.wants_topic, names))
    except (ValueError, TypeError):
        return True


def _last_seq(row: sqlite3.Row) -> int:
    first_seq, ends = row[0], row[4]
    try:
        return int(first_seq) + len(orjson.loads(ends)) - 1
    except (ValueError, TypeError) as error:
        raise _damaged(first_seq, error) from error


def _stretch(row: sqlite3.Row, wanted: Wanted | None, after: int = 0, until: int | None = None) -> Stretch:
    """The wanted events of a block, past ``after`` and up to ``until``."""
    first_seq, received_at, topics, numbers, ends, data, _ = row
    wants_topic = None if wanted is None or wanted.all_topics else wanted.wants_topic
    try:
        if type(data) is not bytes or type(received_at) is not int or not 0 <= received_at < MAX_RECEIVED_AT:
            raise ValueError("a column has a value that it cannot have")
        if wanted and wanted.needle and wanted.needle not in data:
            return Stretch((), (), received_at)
        seqs, json = block.columns(first_seq, topics, numbers, ends, data, wants_topic)
    except (ValueError, TypeError, LookupError) as error:
        raise _damaged(first_seq, error) from error
    if seqs and (seqs[0] <= after or (until is not None and seqs[-1] > until)):
        inside = [after < seq and (until is None or seq <= until) for seq in seqs]
        seqs, json = list(itertools.compress(seqs, inside)), list(itertools.compress(json, inside))
    return Stretch(seqs, json, received_at)


def _damaged(first_seq: int, error: Exception) -> StorageUnreadable:
    return StorageUnreadable(f"cannot read: the block of event {first_seq} is damaged: {error}")
