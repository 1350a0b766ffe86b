"""Everything that reads stored events: by key, by topic, by the names of topics."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from typing import Any, Final

from aggregator.event import digest
from aggregator.storage.engine import StorageUnreadable, StoredEvent, Topic
from aggregator.storage.sqlite import block, postings
from aggregator.storage.sqlite.database import Database
from aggregator.storage.sqlite.ledger import Ledger

_BLOCK_OF = """
SELECT first_seq, received_at, NULL, numbers, ends, data
FROM blocks WHERE first_seq <= :seq ORDER BY first_seq DESC LIMIT 1
"""
SLICE_BLOCKS: Final = 8
"""Blocks in a slice of an answer: half a mebibyte, or eight events that are larger than a block. Some 2 ms."""

ANSWER_S: Final = 0.25
"""How long an answer is worked on, in its own slices, before it is cut short: a thousand blocks, mostly."""

MAX_SEQ: Final = (1 << 63) - 1

_TOPICS = "SELECT name, stored, last_seq FROM topics WHERE name > ? ORDER BY name LIMIT ?"


class Reader:
    """Reads one database, through the connection that never waits for a commit. All raise StorageUnreadable.

    An answer is read a slice at a time, and whoever else wants to read has his slice in between: many large answers
    hold up a small one by a slice each. Each slice is a statement that ends; none is held open over the next, because
    that would keep the WAL from starting afresh.
    """

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger
        self._turn = asyncio.Lock()  # first come, first served

    async def event(self, topic: str, event_id: str) -> StoredEvent | None:
        """The event with this key."""
        try:
            seq = await self._ledger.seq_of(digest(topic, event_id))
        except sqlite3.Error as error:
            raise StorageUnreadable(f"cannot read: {error}") from error
        if seq is None:
            return None
        rows, _ = await self._slice(_BLOCK_OF, {"seq": seq})
        for row in rows:
            for one in _events_in(row):
                if one.seq == seq:
                    return one
        raise StorageUnreadable(f"cannot read: event {seq} is missing")

    async def events(self, topic: str, limit: int, after: int | None, max_bytes: int) -> tuple[list[StoredEvent], bool]:
        """As ``Engine.events``."""
        newest = after is None
        sql = postings.NEWEST if newest else postings.OLDEST
        start = MAX_SEQ
        if after is not None:
            ((start,),), _ = await self._slice(postings.BLOCK_BEFORE, {"topic": topic, "after": after})
        found: list[StoredEvent] = []
        size = 0
        worked_s = 0.0
        while True:
            rows, took_s = await self._slice(sql, {"topic": topic, "start": start, "blocks": SLICE_BLOCKS})
            for row in rows:
                events = _events_in(row)
                for one in reversed(events) if newest else events:
                    if after is not None and one.seq <= after:
                        continue
                    size += len(one.json)
                    if found and size > max_bytes:
                        return found, True
                    found.append(one)
                    if len(found) == limit:
                        return found, False
            if len(rows) < SLICE_BLOCKS:
                return found, False
            start = rows[-1][0] + (-1 if newest else 1)
            worked_s += took_s
            if found and worked_s > ANSWER_S:
                return found, True

    async def topics(self, limit: int, after: str) -> list[Topic]:
        """As ``Engine.topics``."""
        rows, _ = await self._slice(_TOPICS, (after, limit))
        return list(itertools.starmap(Topic, rows))

    async def _slice(self, sql: str, parameters: Any) -> tuple[list[sqlite3.Row], float]:
        """One statement's rows, read whole, in this answer's turn; and how many seconds that took."""
        async with self._turn:
            started = time.monotonic()
            try:
                rows = await self._database.read(sql, parameters)
            except sqlite3.Error as error:
                raise StorageUnreadable(f"cannot read: {error}") from error
            return rows, time.monotonic() - started


def _events_in(row: sqlite3.Row) -> list[StoredEvent]:
    """The events of a block, or those of the topic that the row names."""
    first_seq, received_at, topic, numbers, ends, data = row
    try:
        return [
            StoredEvent(seq, received_at, json) for seq, _, json in block.events(first_seq, numbers, ends, data, topic)
        ]
    except (ValueError, TypeError) as error:  # a damaged block
        raise StorageUnreadable(f"cannot read: {error}") from error
