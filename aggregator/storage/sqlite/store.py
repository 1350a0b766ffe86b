"""SQLite as an Engine: one file, one process. What each part does, and what a crash leaves, is in DESIGN.md."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

import orjson

from aggregator.metric import Metric
from aggregator.storage.engine import Commit, Cursor, Position, Slice, StorageFailed, StoredEvent, Topic, Wanted
from aggregator.storage.sqlite import schema
from aggregator.storage.sqlite.batch import Batch
from aggregator.storage.sqlite.database import Database, storage_error, unusable
from aggregator.storage.sqlite.ledger import Ledger
from aggregator.storage.sqlite.postings import Postings
from aggregator.storage.sqlite.reader import Reader
from aggregator.storage.sqlite.upkeep import Upkeep
from aggregator.storage.sqlite.wal import Wal
from aggregator.storage.sqlite.writer import Writer

MAX_SEQ_DIGITS: Final = 18  # a number with this many digits fits into 64 bits, whatever its digits are

log = logging.getLogger("aggregator")

# This writes a page, and so commits. An UPDATE that changes no byte would not.
_PROBE: Final = f"PRAGMA user_version = {schema.VERSION}"


class Store:
    """One SQLite database. Made by ``open``; must be closed, or the process never ends (aiosqlite's threads)."""

    name = "sqlite"
    version = sqlite3.sqlite_version
    appends_at_once = 1
    """A batch commits while the next one is filled; SQLite has one writer."""
    shared = False

    def __init__(self, database: Database, wal_limit_bytes: int) -> None:
        self.database = database
        self.ledger = Ledger(database)
        self.postings = Postings(database)
        self.wal = Wal(database, wal_limit_bytes)
        self._data_version = 0  # as it was when the database was opened
        self._foreign: str | None = None  # what another program did
        self._writer = Writer(database, self.ledger)
        self._reader = Reader(database, self.ledger, self._writer)
        self._upkeep = Upkeep(self.wal, self.ledger, self.postings, self._writer)

    @classmethod
    async def open(cls, path: Path, wal_limit_bytes: int) -> Self:
        """Open or create the database. Raises StorageUnusable; a file that is not ours is left as it was."""
        database = await Database.open(path)
        store = cls(database, wal_limit_bytes)
        try:
            await store.ledger.load()
            await store.postings.load()
            await store._writer.load()
            store._data_version = await database.data_version()
        except BaseException as error:
            await database.abandon()
            if isinstance(error, sqlite3.Error):
                raise unusable(database.path, error) from error
            raise
        return store

    @property
    def location(self) -> str:
        """Where the events are, for the log."""
        return str(self.database.path)

    @property
    def stored_total(self) -> int:
        """Events that are stored."""
        return self._writer.stored_total

    @property
    def topics_total(self) -> int:
        """Topics that have events."""
        return self._writer.topics_total

    async def count(self) -> None:
        """As ``Engine.count``: there are no other servers."""

    async def look(self) -> None:
        """As ``Engine.look``."""

    async def news(self) -> None:
        """As ``Engine.news``, but it never returns."""
        await asyncio.Event().wait()

    def new_batch(self) -> Batch:
        """An empty batch. Batches must be appended in the order in which they were filled."""
        return Batch(self.ledger.filter)

    async def prepare(self, batch: Batch) -> None:
        """Look up the keys of a full batch, right after the statement that is storing the previous batch."""
        try:
            await self._writer.decide(batch)
        except sqlite3.Error as error:
            raise storage_error(error) from error

    async def append(self, batch: Batch) -> Commit:
        """As ``Engine.append``. Above the WAL's limit it raises StorageBusy."""
        await self.wal.make_room()
        try:
            packed = await self._writer.append(batch)
        except sqlite3.Error as error:
            raise storage_error(error) from error
        self.database.verify_names(again=True)  # before any ack
        self.ledger.stored(packed.digests, packed.seqs, packed.stored_bytes)
        if packed.commit.duplicates:
            self.ledger.expect(next(iter(packed.commit.duplicates.values())))
        self.postings.stored(packed.postings)
        self.wal.committed(packed.stored_bytes)
        return packed.commit

    async def verify(self) -> None:
        """As ``Engine.verify``: the files are still there, and no other program writes to them."""
        self.database.verify_names()
        try:
            await self.database.verify_size()
            version = await self.database.data_version()
        except sqlite3.Error as error:
            why = storage_error(error)
            if isinstance(why, StorageFailed):
                raise why from error
            return  # another program is in the way: the next call checks
        if version != self._data_version and not self._foreign:
            self._foreign = "another program has written to the database; only one aggregator may"
            log.error("%s: %s", self.location, self._foreign)

    async def probe(self) -> None:
        """As ``Engine.probe``."""
        try:
            await self.database.write(_PROBE)
        except sqlite3.Error as error:
            raise storage_error(error) from error

    @property
    def upkeep_due(self) -> bool:
        """As ``Engine.upkeep_due``."""
        return self._upkeep.due

    @property
    def upkeep_left(self) -> bool:
        """As ``Engine.upkeep_left``."""
        return self._upkeep.left

    async def upkeep(self, quiet: bool) -> bool:
        """As ``Engine.upkeep``."""
        return await self._upkeep.run(quiet)

    async def event(self, topic: str, event_id: str) -> StoredEvent | None:
        """As ``Engine.event``."""
        return await self._reader.event(topic, event_id)

    @property
    def head(self) -> int:
        """As ``Engine.head``: the highest seq that was handed out."""
        return self._writer.head

    @property
    def store_id(self) -> str:
        """As ``Engine.store_id``."""
        return self._writer.store_id

    def parse_position(self, text: str) -> Position | None:
        """As ``Engine.parse_position``: a seq."""
        return int(text) if text.isdecimal() and len(text) <= MAX_SEQ_DIGITS else None

    def advance(self, position: Position, seqs: Sequence[int]) -> Position:
        """As ``Engine.advance``: there is one order."""
        return seqs[-1] if seqs else position

    def retreat(self, position: Position, seqs: Sequence[int]) -> Position:
        """As ``Engine.retreat``."""
        return max(0, seqs[-1] - 1) if seqs else position

    def distance(self, earlier: Position, later: Position) -> int:
        """As ``Engine.distance``."""
        return max(0, int(later) - int(earlier))

    def earlier(self, one: Position, other: Position) -> Position:
        """As ``Engine.earlier``."""
        return min(int(one), int(other))

    def later(self, one: Position, other: Position) -> Position:
        """As ``Engine.later``."""
        return max(int(one), int(other))

    async def read(
        self, wanted: Wanted, after: Position, until: Position, background: bool = False, slices: int = 1
    ) -> Slice:
        """As ``Engine.read``."""
        return await self._reader.read(wanted, int(after), int(until), background, slices)

    async def read_back(self, wanted: Wanted, before: Position) -> Slice:
        """As ``Engine.read_back``."""
        return await self._reader.read_back(wanted, int(before))

    async def seek(self, received_at: int) -> Position:
        """As ``Engine.seek``."""
        return await self._reader.seek(received_at)

    async def cursors(self) -> list[Cursor]:
        """As ``Engine.cursors``."""
        return await self._reader.cursors()

    async def save_cursors(self, changed: Sequence[Cursor], gone: Sequence[str]) -> Collection[str]:
        """As ``Engine.save_cursors``."""
        rows = [(one.name, one.interest, one.acked, one.acked_at) for one in changed]
        try:
            if rows:
                await self.database.write(schema.SAVE_CURSORS, (orjson.dumps(rows).decode(),))
            if gone:
                await self.database.write(schema.FORGET_CURSORS, (orjson.dumps(gone).decode(),))
        except sqlite3.Error as error:
            raise storage_error(error) from error
        return ()

    async def claim_cursor(self, cursor: Cursor, seen: str | None) -> Cursor | None:
        """As ``Engine.claim_cursor``."""
        raise AssertionError("a file has one server, so nobody else could claim a name")

    async def topics(self, limit: int, after: str) -> list[Topic]:
        """As ``Engine.topics``."""
        return await self._reader.topics(limit, after)

    def gauges(self) -> Iterator[Metric]:
        """As ``Engine.gauges``."""
        yield Metric("stored_total", self.stored_total, "events in the database")
        yield Metric("topics", self.topics_total, "topics in the database")
        yield Metric("db_bytes", self.database.db_bytes, "size of the database file")
        yield Metric("checkpoint_age_s", round(self.wal.age_s, 3), "time since the last checkpoint", in_health=True)
        yield Metric("wal_bytes", self.database.wal_bytes, "size of the database's -wal file", in_health=True)
        yield Metric(
            "ledger",
            {"runs": self.ledger.run_count, "filter": round(self.ledger.filter.filled, 3)},
            "tables in which an old key is looked up; share of the keys that are in the filter in memory",
        )

    def troubles(self) -> dict[str, str | None]:
        """As ``Engine.troubles``."""
        return {"checkpoint": self.wal.last.error, "other_writers": self._foreign}

    async def close(self) -> None:
        """Close the database and release the lock."""
        await self.database.close()
