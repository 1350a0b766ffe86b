"""The database: append, read, counters, checkpoint. The SQL of keys is in ``ledger``, that of a topic's blocks in
``postings``, the table of blocks in ``block``, all other SQL is here; what is done before SQLite opens the file is in
``database_file``.

Rules that hold here:

- A batch is one statement, and the statement is the transaction: it is committed and fsynced (WAL, synchronous=FULL)
  when it ends, or it never happened. Before it is decided which keys are new; in it they are inserted into the ledger's
  memtable, where each key can be only once. No transaction takes several statements: another could come between.
- A batch is bound as a handful of parameters and runs as one step of SQLite, without Python's interpreter lock:
  ``executemany`` takes the lock once a row and was measured 17 times slower beside a busy event loop.
- There is exactly one read-write connection, and only it checkpoints (SQLite before 3.51.3 can corrupt a database
  that two connections write or checkpoint at once). Whoever asks for events is answered through a second connection,
  ``mode=ro``, and never waits for a commit.
- While SQLite has the database files open, no descriptor of them is closed but SQLite's own: that would drop its POSIX
  locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiosqlite
import orjson

from aggregator import block, database_file, event, ledger, memtable, postings
from aggregator.batch import Batch
from aggregator.database_file import StoreUnusable
from aggregator.ledger import Ledger, LookUp
from aggregator.postings import Postings

MIN_SQLITE: Final = (3, 38, 0)  # json_each() is always there

PAGE_BYTES: Final = 4096
CACHE_KIB: Final = 64 * 1024
"""SQLite's page cache for the writer: the inner pages of the ledger's runs, and the runs that are still small."""

CHECKPOINT_BYTES: Final = 3 << 20
"""The WAL is copied into the database when there is about this much to copy: some 10 ms, for which commits wait. More
is felt in the 99th percentile of the ack latency; with 2 MiB each batch under full load was followed by a checkpoint,
for a tenth less throughput."""

BACKLOG_BYTES: Final = 32 << 20
"""The same for the WAL itself, in which many small commits repeat the pages that they all change."""

WAL_FILE_BYTES: Final = 64 << 20
"""What the WAL's file is cut to when it starts anew, should it have grown because somebody was reading."""

STATEMENTS: Final = 24
"""Prepared statements that a connection keeps. Those that look for keys name all tables of keys, which change with
every flush: of 128, Python's default, most are of tables that are gone, and they had 9 MB at 25 million keys."""

COMMIT_PAGES: Final = 5
"""Pages that any commit changes, beside those which its events fill."""

BUSY_TIMEOUT_S: Final = 1.0
"""How long SQLite waits for a foreign writer before the batch is tried again from the start."""

READ_ROWS: Final = 16
"""Blocks fetched at a time, mostly 1 MiB; with lines of at most 1 MiB this bounds what one answer holds in memory."""

SEEN_TOPICS: Final = 10_000
"""Topics remembered as not new, so that their number need not be asked for after each batch."""

_SCHEMA = f"""
BEGIN;
CREATE TABLE topics (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    stored INTEGER NOT NULL DEFAULT 0,     -- events in this topic
    last_seq INTEGER NOT NULL DEFAULT 0
);
{block.SCHEMA}{postings.SCHEMA}CREATE TABLE totals (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    next_seq INTEGER NOT NULL,             -- never handed out before, whatever is deleted
    stored INTEGER NOT NULL,
    topics INTEGER NOT NULL,
    posted_seq INTEGER NOT NULL            -- first_seq of the last block whose postings are written
);
INSERT INTO totals VALUES (1, 1, 0, 0, 0);
{ledger.SCHEMA}
PRAGMA application_id = {database_file.APPLICATION_ID};
PRAGMA user_version = {database_file.SCHEMA_VERSION};
COMMIT;
"""

# The transaction of a batch, as a trigger: whoever inserts a row into the view runs it in one statement. Its columns
# are ``Batch.parameters``, how many of the topics are new, and which memtable takes new keys.
_TRIGGERS = f"""
{memtable.TEMPORARY_SCHEMA}
CREATE TEMP VIEW batch AS
    SELECT NULL AS first_seq, NULL AS next_seq, NULL AS received_at, NULL AS stored, NULL AS memtable, NULL AS seqs,
           NULL AS digests, NULL AS topics, NULL AS new_topics, NULL AS blocks, NULL AS data;
CREATE TEMP TRIGGER append_batch INSTEAD OF INSERT ON batch BEGIN
    {memtable.TRIGGERED_INSERT}
    INSERT INTO blocks (first_seq, received_at, topics, numbers, ends, data)
        SELECT json_extract(value, '$[0]'), NEW.received_at, json_extract(value, '$[3]'), json_extract(value, '$[4]'),
               json_extract(value, '$[5]'), substr(NEW.data, json_extract(value, '$[1]'), json_extract(value, '$[2]'))
        FROM json_each(NEW.blocks);
    INSERT INTO topics (name, stored, last_seq)
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
        FROM json_each(NEW.topics) WHERE true
        ON CONFLICT (name) DO UPDATE SET stored = stored + excluded.stored, last_seq = excluded.last_seq;
    UPDATE totals SET next_seq = NEW.next_seq, stored = stored + NEW.stored, topics = topics + NEW.new_topics;
END;
{postings.WRITE_TRIGGER}"""
_APPEND = """
INSERT INTO batch VALUES (:first_seq, :next_seq, :received_at, :stored, :memtable, :seqs, :digests,
                          :topics, :new_topics, :blocks, :data)
"""
_NEW_TOPICS = "SELECT count(*) FROM json_each(?) WHERE value NOT IN (SELECT name FROM topics)"

_BLOCK_OF = """
SELECT first_seq, received_at, NULL, numbers, ends, data
FROM blocks WHERE first_seq <= :seq ORDER BY first_seq DESC LIMIT 1
"""
_TOPICS = "SELECT name, stored, last_seq FROM topics WHERE name > ? ORDER BY name LIMIT ?"


class StorageFull(Exception):
    """Nothing of the batch was stored because the disk is full. Later batches may succeed."""


class StorageBusy(Exception):
    """Nothing of the batch was stored because another program holds the write lock. Try it again."""


class StorageFailed(Exception):
    """Whether the batch is stored is unknown, and this store must not be used again."""


@dataclass(slots=True)
class StoredEvent:
    """An event as it was sent (a JSON object, UTF-8), and what the store knows of it. Times in ms since 1970, UTC."""

    seq: int
    received_at: int
    json: bytes


@dataclass(slots=True)
class Topic:
    """A topic with the number of its events and the seq of the newest."""

    name: str
    stored: int
    last_seq: int


@dataclass(slots=True)
class Checkpoint:
    """How the last attempt to copy the WAL into the database went."""

    ended: float  # time.monotonic()
    error: str | None


class _Connection(sqlite3.Connection):
    """The parameters of a statement may be a function that makes them, when its turn has come, in SQLite's thread."""

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        return super().execute(sql, parameters(self) if callable(parameters) else parameters)


class Store:
    """One SQLite database. Made by ``open``; must be closed, or the process never ends (aiosqlite's threads)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stored_total = 0
        self.topics_total = 0
        self.last_checkpoint = Checkpoint(time.monotonic(), None)
        self.sqlite_version = sqlite3.sqlite_version
        self._wal_path = path.with_name(path.name + "-wal")
        self.ledger: Ledger
        self._postings: Postings
        self._next_seq = 1
        self._upcoming_seq = 1  # once the batch that is being appended is stored
        self._handed_over = 0  # batches, for the first or another time, to SQLite
        self._seen_topics: set[str] = set()
        self._backlog_bytes = 0  # estimate, without what the ledger has written since the last checkpoint
        self._ledger_bytes = 0  # all that the ledger had written then
        self._event_bytes = 0  # that were appended since then
        self._lock_fd = -1
        self._db_fd = -1  # never closed before SQLite's own: that would drop its locks
        self._connections: list[aiosqlite.Connection] = []
        self._writer: aiosqlite.Connection
        self._reader: aiosqlite.Connection
        self._read_turn = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path) -> Store:
        """Open or create the database. Raises StoreUnusable; a file that is not ours is left as it was."""
        if sqlite3.sqlite_version_info < MIN_SQLITE:
            raise StoreUnusable(f"SQLite {sqlite3.sqlite_version} is too old: 3.38 or newer is needed")
        try:
            database_file.make_folder(path.parent)
            path = path.resolve()  # noqa: ASYNC240 (nothing runs yet)
            store = cls(path)
            store._lock_fd = database_file.lock(path)
        except (OSError, ValueError, RuntimeError) as error:  # the latter: no file name, a loop of links
            reason = error.strerror if isinstance(error, OSError) else None
            raise StoreUnusable(f"cannot use {path}: {reason or error}") from error
        try:
            await store._open()
        except BaseException as error:
            await store.close()
            if isinstance(error, sqlite3.Error | OSError):
                reason = error.strerror if isinstance(error, OSError) else None
                raise StoreUnusable(f"cannot use {path}: {reason or error}") from error
            raise
        return store

    async def _open(self) -> None:
        if not database_file.size(self.path) and database_file.size(self._wal_path):
            raise StoreUnusable(
                f"{self.path} is missing or empty, but {self._wal_path.name} holds events: restore one or move both"
            )
        database_file.refuse_foreign(self.path)
        crashed = database_file.size(self._wal_path) > 0
        if crashed:
            database_file.write_anew(self._wal_path)
        self._writer = await self._connect(self.path, timeout=BUSY_TIMEOUT_S)
        self._db_fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        if crashed:
            self._distrust_cache()
        await self._write("PRAGMA synchronous = FULL")
        if await self._pragma("application_id") != database_file.APPLICATION_ID:
            # A new file, or one whose making was cut short. Before there is a WAL: the file itself says whose it is.
            await self._write(f"PRAGMA page_size = {PAGE_BYTES}")
            await self._writer.executescript(_SCHEMA)
        for pragma in (
            "journal_mode = WAL",
            "wal_autocheckpoint = 0",  # a failing automatic checkpoint would be silent
            f"journal_size_limit = {WAL_FILE_BYTES}",
            f"cache_size = -{CACHE_KIB}",
            "temp_store = MEMORY",
            "secure_delete = OFF",  # Debian's SQLite would write zeros over each run that was merged
        ):
            await self._write(f"PRAGMA {pragma}")
        await self._writer.executescript(_TRIGGERS)
        self._reader = await self._connect(f"{self.path.as_uri()}?mode=ro", uri=True, iter_chunk_size=READ_ROWS)
        self.ledger = Ledger(self._writer, self._reader)
        await self.ledger.load()
        self._postings = Postings(self._writer)
        await self._postings.load()
        promised = {"journal_mode": "wal", "synchronous": 2}
        found = {name: await self._pragma(name) for name in promised}
        if found != promised:
            raise StoreUnusable(f"cannot use {self.path}: an ack would not be durable with {found}")
        totals = await self._write("SELECT next_seq, stored, topics FROM totals")
        self._next_seq, self.stored_total, self.topics_total = totals[0]
        self._upcoming_seq = self._next_seq
        self._set_backlog(self.wal_bytes)

    async def _connect(self, database: Path | str, **options: Any) -> aiosqlite.Connection:
        # isolation_level None: SQLite's own autocommit, so that one statement is one transaction.
        connection = await aiosqlite.connect(
            database, isolation_level=None, factory=_Connection, cached_statements=STATEMENTS, **options
        )
        self._connections.append(connection)
        return connection

    async def _write(self, sql: str, parameters: Any = ()) -> list[sqlite3.Row]:
        # Fetched in the writer's thread, where the cursor ends too: a cursor that is dropped in the event loop would
        # wait there for SQLite's mutex, that is, for the whole of the next commit.
        return list(await self._writer.execute_fetchall(sql, parameters))

    async def _pragma(self, name: str) -> Any:
        return (await self._write(f"PRAGMA {name}"))[0][0]

    @property
    def db_bytes(self) -> int:
        return database_file.size(self.path)

    @property
    def wal_bytes(self) -> int:
        return database_file.size(self._wal_path)

    @property
    def backlog_bytes(self) -> int:
        """About how much of the WAL is not yet in the database."""
        return self._backlog_bytes + self.ledger.written_bytes - self._ledger_bytes

    @property
    def checkpoint_due(self) -> bool:
        """Whether there is enough to be copied into the database."""
        to_copy = self._event_bytes + self.ledger.written_bytes - self._ledger_bytes
        return to_copy > CHECKPOINT_BYTES or self.backlog_bytes > BACKLOG_BYTES

    def _set_backlog(self, size: int) -> None:
        self._backlog_bytes = size
        self._ledger_bytes = self.ledger.written_bytes
        self._event_bytes = 0

    @property
    def checkpoint_age_s(self) -> float:
        """Time since the last attempt to checkpoint, or since the database was opened."""
        return time.monotonic() - self.last_checkpoint.ended

    def new_batch(self) -> Batch:
        """An empty batch for ``append``. Batches have to be appended in the order in which they were filled."""
        return Batch(self.ledger.filter)

    async def decide(self, batch: Batch) -> None:
        """Find out which events of a full batch are duplicates, if what is being appended now will be stored.

        ``append`` does it where it was not done, or for nothing. Raises as that does.
        """
        first_seq, handed_over = self._upcoming_seq, self._handed_over
        look_up = self.ledger.look_up(batch.maybe_stored)
        try:
            batch.decide(first_seq, look_up.found(await self._write(look_up.sql, look_up.parameters)))
        except sqlite3.Error as error:
            raise _storage_error(error) from error
        batch.decided_after = handed_over

    async def append(self, batch: Batch) -> int:
        """Store a batch durably, but for its duplicates; return the seq of its first event.

        Event ``i`` got seq ``first + i`` unless ``i`` is in ``batch.duplicates``. Raises StorageFull, StorageBusy or
        StorageFailed. Cancelling it says nothing about what was stored.
        """
        first_seq = self._next_seq
        topics = set(batch.events.topics)
        try:
            context = {"new_topics": await self._count_new(topics), "memtable": self.ledger.memtable}
            if (batch.decided_after, batch.first_seq) == (self._handed_over, first_seq):
                parameters: Any = _bind(batch, context)
            else:  # another was handed over since, or what was is not stored: what was decided is worth nothing
                parameters = partial(
                    _decide_and_bind, batch, context, first_seq, self.ledger.look_up(batch.maybe_stored)
                )
            self._upcoming_seq = first_seq + len(batch)
            self._handed_over += 1
            await self._write(_APPEND, parameters)
        except sqlite3.Error as error:
            raise _storage_error(error) from error
        else:
            self._next_seq = self._upcoming_seq
        finally:
            self._upcoming_seq = self._next_seq
        self.stored_total += len(batch.seqs)
        self.topics_total += context["new_topics"]
        self._remember(topics)
        self.ledger.stored(batch.digests, batch.seqs, batch.stored_bytes)
        if batch.duplicates:
            self.ledger.expect(next(iter(batch.duplicates.values())))
        self._postings.stored(batch.postings)
        # Beside its events a commit changes a few pages, mostly the same as the one before.
        self._event_bytes += batch.stored_bytes
        self._backlog_bytes += batch.stored_bytes + COMMIT_PAGES * PAGE_BYTES
        return first_seq

    async def _count_new(self, topics: set[str]) -> int:
        unseen = topics - self._seen_topics
        if not unseen:
            return 0
        ((count,),) = await self._write(_NEW_TOPICS, (orjson.dumps(list(unseen)).decode(),))
        return int(count)

    def _remember(self, topics: set[str]) -> None:
        if len(self._seen_topics) + len(topics) > SEEN_TOPICS:
            self._seen_topics.clear()
        self._seen_topics |= topics

    @property
    def work_due(self) -> bool:
        """Whether ``work`` beside a batch would do something."""
        return self._postings.due or self.ledger.work_due

    @property
    def work_left(self) -> bool:
        """Whether ``work`` in quiet times would do something."""
        return self.ledger.work_left

    async def work(self, quiet: bool) -> None:
        """Do what the indices need beside the batches, or in quiet times. Raises as ``append`` does."""
        try:
            if self._postings.due:
                await self._postings.write()
                # About a page for each topic.
                self._backlog_bytes += min(postings.DUE, self.topics_total) * PAGE_BYTES
            await self.ledger.work(quiet)
        except sqlite3.Error as error:
            raise _storage_error(error) from error

    async def checkpoint(self, truncate: bool = False) -> None:
        """Copy the WAL into the database, and cut its file then if told to, waiting for readers for that.

        Failing is no loss, but shown in ``last_checkpoint`` and to be retried.
        """
        mode = "TRUNCATE" if truncate else "PASSIVE"
        try:
            blocked, in_wal, copied = (await self._write(f"PRAGMA wal_checkpoint({mode})"))[0]
        except sqlite3.Error as error:
            self._distrust_cache()
            self.last_checkpoint = Checkpoint(time.monotonic(), str(error))
            return
        if in_wal >= 0:  # else another program is at it, and nothing was done
            self._set_backlog((in_wal - copied) * PAGE_BYTES)
        blocked = blocked or self.backlog_bytes > WAL_FILE_BYTES
        self.last_checkpoint = Checkpoint(time.monotonic(), "another program is reading" if blocked else None)

    def _distrust_cache(self) -> None:
        """Have the kernel forget what it keeps of the database in memory, and does not mean to write any more.

        After a write error that may be what is not on the disk: written over by the next checkpoint, ext4 would take
        its place for written, and the WAL would be given up for a database that a power cut leaves with holes.
        """
        os.posix_fadvise(self._db_fd, 0, 0, os.POSIX_FADV_DONTNEED)

    async def probe(self) -> None:
        """Commit something that changes nothing. Raises as ``append`` does: tells whether the disk has space again."""
        try:
            await self._write("UPDATE totals SET stored = stored")
        except sqlite3.Error as error:
            raise _storage_error(error) from error

    async def event(self, topic: str, event_id: str) -> StoredEvent | None:
        """The event with this key."""
        try:
            seq = await self.ledger.seq_of(event.digest(topic, event_id))
        except sqlite3.Error as error:
            raise StorageFailed(f"cannot read: {error}") from error
        if seq is None:
            return None
        async with contextlib.aclosing(self._read(_BLOCK_OF, {"seq": seq})) as events:
            async for one in events:
                if one.seq == seq:
                    return one
        raise StorageFailed(f"cannot read: event {seq} is missing")

    async def events(self, topic: str, limit: int, after: int | None, max_bytes: int) -> tuple[list[StoredEvent], bool]:
        """Without ``after`` the newest events, newest first; with it the oldest past that seq, oldest first.

        Cut short where they would exceed ``max_bytes`` together, but never to none; the second value tells.
        """
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

    async def _read(self, sql: str, parameters: Any, backwards: bool = False) -> AsyncGenerator[StoredEvent]:
        """The events in the blocks that ``sql`` finds, or those of one topic."""
        async with self._reading(), await self._query(sql, parameters) as cursor:
            async for first_seq, received_at, topic, numbers, ends, data in cursor:
                found = list(block.events(first_seq, numbers, ends, data, topic))
                for seq, _, json in reversed(found) if backwards else found:
                    yield StoredEvent(seq, received_at, json)

    async def _query(self, sql: str, parameters: Any) -> aiosqlite.Cursor:
        while True:
            try:
                return await self._reader.execute(sql, parameters)
            except sqlite3.OperationalError as error:
                # Tables of keys come and go: SQLite tries again by itself, but not for ever.
                if error.sqlite_errorcode != sqlite3.SQLITE_SCHEMA:
                    raise

    @contextlib.asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        """One reader at a time, so that what answers hold in memory is bounded."""
        try:
            async with self._read_turn:
                yield
        except (sqlite3.Error, ValueError, TypeError) as error:  # the others: a damaged block
            raise StorageFailed(f"cannot read: {error}") from error

    async def topics(self, limit: int, after: str) -> list[Topic]:
        """The topics whose name comes after ``after`` (in order of code points), with their counts."""
        async with self._reading(), await self._query(_TOPICS, (after, limit)) as cursor:
            return list(itertools.starmap(Topic, await cursor.fetchall()))

    async def close(self) -> None:
        """Close the database and give up the lock. SQLite moves everything out of the WAL when the last one leaves."""
        try:
            while self._connections:  # the reader first, for only the writer may move the WAL
                await self._connections.pop().close()
        finally:
            for fd in (self._db_fd, self._lock_fd):
                if fd >= 0:
                    os.close(fd)
            self._db_fd = self._lock_fd = -1


def _bind(batch: Batch, context: dict[str, int]) -> dict[str, Any]:
    """The parameters of ``_APPEND`` for a batch that is decided."""
    batch.number()
    return batch.parameters(time.time_ns() // 1_000_000) | context


def _decide_and_bind(
    batch: Batch, context: dict[str, int], first_seq: int, look_up: LookUp, writer: sqlite3.Connection
) -> dict[str, Any]:
    """The same for one that is not. Runs in SQLite's thread: nothing else touches the batch meanwhile."""
    found = look_up.found(writer.execute(look_up.sql, look_up.parameters)) if look_up.keys else {}
    batch.decide(first_seq, found)
    return _bind(batch, context)


def _storage_error(error: sqlite3.Error) -> StorageFull | StorageBusy | StorageFailed:
    name: str = getattr(error, "sqlite_errorname", None) or type(error).__name__
    # SHMSIZE: the shared-memory file could not be made longer. Both say that the transaction did not happen.
    if name in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"):
        return StorageFull("no space left on the disk of the database")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StorageBusy("another program is writing to the database")
    return StorageFailed(database_file.one_line(f"{error} ({name})"))
