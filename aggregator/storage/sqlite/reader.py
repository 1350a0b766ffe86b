"""Everything that reads stored events: by key, by topic, by the names of topics."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from aggregator.event import digest
from aggregator.storage.engine import StorageUnreadable, StoredEvent, Topic
from aggregator.storage.sqlite import block, postings
from aggregator.storage.sqlite.database import Database
from aggregator.storage.sqlite.ledger import Ledger

_BLOCK_OF = """
SELECT first_seq, received_at, NULL, numbers, ends, data
FROM blocks WHERE first_seq <= :seq ORDER BY first_seq DESC LIMIT 1
"""
_TOPICS = "SELECT name, stored, last_seq FROM topics WHERE name > ? ORDER BY name LIMIT ?"


class Reader:
    """Reads one database, through the connection that never waits for a commit. All raise StorageUnreadable."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger
        self._turn = asyncio.Lock()

    async def event(self, topic: str, event_id: str) -> StoredEvent | None:
        """The event with this key."""
        try:
            seq = await self._ledger.seq_of(digest(topic, event_id))
        except sqlite3.Error as error:
            raise StorageUnreadable(f"cannot read: {error}") from error
        if seq is None:
            return None
        async with contextlib.aclosing(self._read(_BLOCK_OF, {"seq": seq})) as events:
            async for one in events:
                if one.seq == seq:
                    return one
        raise StorageUnreadable(f"cannot read: event {seq} is missing")

    async def events(self, topic: str, limit: int, after: int | None, max_bytes: int) -> tuple[list[StoredEvent], bool]:
        """As ``Engine.events``."""
        found: list[StoredEvent] = []
        size = 0
        newest = after is None
        parameters = {"topic": topic, "limit": limit, "after": after}
        async with contextlib.aclosing(
            self._read(postings.NEWEST if newest else postings.AFTER, parameters, newest)
        ) as events:
            async for one in events:
                if after is not None and one.seq <= after:
                    continue
                size += len(one.json)
                if found and size > max_bytes:
                    return found, True
                found.append(one)
                if len(found) == limit:
                    break
        return found, False

    async def topics(self, limit: int, after: str) -> list[Topic]:
        """As ``Engine.topics``."""
        async with self._reading(), await self._database.query(_TOPICS, (after, limit)) as cursor:
            return list(itertools.starmap(Topic, await cursor.fetchall()))

    async def _read(self, sql: str, parameters: Any, backwards: bool = False) -> AsyncGenerator[StoredEvent]:
        """The events in the blocks that ``sql`` finds, or those of one topic."""
        async with self._reading(), await self._database.query(sql, parameters) as cursor:
            async for first_seq, received_at, topic, numbers, ends, data in cursor:
                found = list(block.events(first_seq, numbers, ends, data, topic))
                for seq, _, json in reversed(found) if backwards else found:
                    yield StoredEvent(seq, received_at, json)

    @contextlib.asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        """One answer at a time, so that what answers hold in memory is bounded."""
        try:
            async with self._turn:
                yield
        except (sqlite3.Error, ValueError, TypeError) as error:  # the others: a damaged block
            raise StorageUnreadable(f"cannot read: {error}") from error
