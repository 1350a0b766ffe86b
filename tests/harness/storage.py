"""Hooks into the SQLite engine: the only file of the tests that knows its constants and its private parts.

``put`` replaces a constant: it is ``monkeypatch.setattr`` in a test, ``setattr`` in a server's process (``changes``).
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import aiosqlite

from aggregator import event
from aggregator.event import Event, Events
from aggregator.storage import block
from aggregator.storage.engine import StorageFailed
from aggregator.storage.sqlite import (
    database,
    key_filter,
    ledger,
    memtable,
    plans,
    postings,
    reader,
    upkeep,
    wal,
    writer,
)
from aggregator.storage.sqlite.database import Database, storage_error
from aggregator.storage.sqlite.key_filter import KeyFilter
from aggregator.storage.sqlite.ledger import Ledger
from aggregator.storage.sqlite.store import Store

Put = Callable[[Any, str, object], None]

OpenStore = Callable[[], Awaitable[Store]]
"""The type of a fixture that opens the same store again and again."""

WAL_LIMIT_BYTES: Final = 1 << 30

NO_LIMIT: Final = 1 << 30
"""More pages than any database of the tests has."""


async def open_store(path: Path) -> Store:
    """Open the engine itself, without a server."""
    return await Store.open(path, WAL_LIMIT_BYTES)


async def append(store: Store, events: Iterable[Event]) -> tuple[int, dict[int, int]]:
    """Store events as one batch; return the seq of the first, and the older seq of each duplicate by its position."""
    batch = store.new_batch()
    batch.add(Events.of(events))
    commit = await store.append(batch)
    return commit.seqs[0], dict(commit.duplicates)


# --- constants


def shrink_ledger(put: Put, keys: int = 4, fanout: int = 2, least: int = 2, most: int = 4) -> None:
    """Let a memtable become a run at this many keys, and let merges copy ``least`` to ``most`` keys at a time."""
    put(memtable, "MEMTABLE_KEYS", keys)
    put(ledger, "FANOUT", fanout)
    put(ledger, "SLICE_KEYS", least)
    put(ledger, "MAX_SLICE_KEYS", most)
    put(ledger, "FILL_KEYS", most)
    put(ledger, "_REFILL_BLOCKS", 3)


def set_memtable(put: Put, keys: int | None = None, event_bytes: int | None = None) -> None:
    """Let a memtable become a run at this many keys, or at this many bytes of events."""
    if keys is not None:
        put(memtable, "MEMTABLE_KEYS", keys)
    if event_bytes is not None:
        put(memtable, "MEMTABLE_EVENT_BYTES", event_bytes)


def set_fanout(put: Put, runs: int) -> None:
    """Merge this many runs of a level into one run of the next level."""
    put(ledger, "FANOUT", runs)


def set_filter_slice(put: Put, keys: int) -> None:
    """After a start, add this many keys at a time to the filter."""
    put(ledger, "FILL_KEYS", keys)


def shrink_filter(put: Put, byte_bits: int) -> None:
    """Give the filter 2^``byte_bits`` bytes: with one or two bits it is soon full, and every key is looked up."""
    put(key_filter, "FILTER_BYTES", 1 << byte_bits)
    put(key_filter, "_BYTE_SHIFT", 32 - byte_bits)
    put(key_filter, "_MASK_SHIFT", 26 - byte_bits)


def shrink_blocks(put: Put, events: int, size_bytes: int) -> None:
    """Cut blocks at this many events, or at this many bytes."""
    put(block, "BLOCK_EVENTS", events)
    put(block, "BLOCK_BYTES", size_bytes)


def shrink_slices(put: Put, blocks: int, heads: int) -> None:
    """Read this few blocks at a time, and look at the topics of this few blocks at a time."""
    put(reader, "SLICE_BLOCKS", blocks)
    put(reader, "HEADS", heads)


def shrink_plans(put: Put, listed: int, page: int) -> None:
    """Read at most this few topics through postings, and look through this few topics at a time."""
    put(plans, "MAX_LISTED_TOPICS", listed)
    put(plans, "PAGE", page)


def set_clock(put: Put, milliseconds: Callable[[], int]) -> None:
    """Let events be received at the times that this function returns."""
    put(writer, "time", SimpleNamespace(time_ns=lambda: milliseconds() * 1_000_000))


def set_postings_due(put: Put, count: int) -> None:
    """Write postings when this many are waiting."""
    put(postings, "DUE", count)


def remember_topics(put: Put, count: int) -> None:
    """Remember this many topics as not new."""
    put(writer, "SEEN_TOPICS", count)


def never_wait(put: Put) -> None:
    """Do not wait for a lock that another program holds, nor before failed work is tried again."""
    put(database, "BUSY_TIMEOUT_S", 0.0)
    put(upkeep, "RETRY_S", 0.0)
    put(wal, "RETRY_S", 0.0)


def pause_after_failures(put: Put, seconds: float) -> None:
    """Wait this long before a checkpoint that failed, or work that found no space, is tried again."""
    put(upkeep, "RETRY_S", seconds)
    put(wal, "RETRY_S", seconds)


def checkpoint_after(put: Put, size_bytes: int) -> None:
    """Run a checkpoint when there are this many bytes to copy."""
    put(wal, "CHECKPOINT_BYTES", size_bytes)


def crowd_digests(put: Put, heads: Sequence[bytes]) -> None:
    """Let every digest begin with one of ``heads``; without heads, leave the digests as they are."""

    def crowded(data: bytes) -> SimpleNamespace:
        digest = hashlib.blake2s(data).digest()
        return SimpleNamespace(digest=lambda: heads[digest[-1] % len(heads)] + digest[4:])

    if heads:
        put(event, "_blake2s", crowded)


# --- upkeep, one piece at a time


async def work(store: Store, quiet: bool) -> None:
    """Do the upkeep of the tables alone, without checkpoint or pause. Raises as ``append`` does."""
    try:
        await store._upkeep._work(quiet)
    except sqlite3.Error as error:
        raise storage_error(error) from error


async def flush(store: Store) -> None:
    """Let a full memtable become a run; leave the merges that this makes possible."""
    while len(store.ledger._memtables) > 1 or any("memtable" in statement for statement in store.ledger._garbage):
        await work(store, quiet=True)


async def merge(store: Store) -> None:
    """Finish the merges; the tables that they have replaced are still there."""
    while store.ledger._merges:
        await work(store, quiet=True)


async def finish_work(store: Store) -> None:
    """Do all the work that is left."""
    while store.ledger.work_left:
        await work(store, quiet=True)


# --- looking inside


def runs(store: Store) -> list[tuple[int, int]]:
    """Level and number of keys of each run, including unfinished runs."""
    return [(run.level, run.keys) for run in store.ledger._runs]


def runs_in_use(store: Store) -> list[tuple[int, int]]:
    """Level and number of keys of each run that keys are looked up in."""
    return [(run.level, run.keys) for run in store.ledger._complete()]


def tables_to_drop(store: Store) -> int:
    """How many merged tables wait to be dropped."""
    return len(store.ledger._garbage)


def topics_remembered(store: Store) -> int:
    return len(store._writer._seen_topics)


def rows_changed(store: Store) -> int:
    """How many rows the writing connection has changed so far."""
    return store.database.writer.total_changes


async def empty_wal(store: Store) -> int:
    """Copy the WAL into the database, and truncate its file; return how many pages it had."""
    ((_, pages, _),) = await store.database.write("PRAGMA wal_checkpoint(PASSIVE)")
    await store.database.write("PRAGMA wal_checkpoint(TRUNCATE)")  # reports no pages, because it has emptied the WAL
    return int(pages)


async def steps(connection: aiosqlite.Connection, work: Callable[[], Awaitable[object]]) -> int:
    """How many instructions of SQLite's virtual machine some work takes: exact, whatever the load of the machine."""
    count = 0

    def one_more() -> int:
        nonlocal count
        count += 1
        return 0

    await on_each_step(connection, one_more)
    await work()
    await on_each_step(connection, None)
    return count


async def on_each_step(connection: aiosqlite.Connection, call: Callable[[], int] | None) -> None:
    """Call back at each instruction of SQLite's virtual machine."""
    await connection.set_progress_handler(call, 1 if call else 0)  # type: ignore[arg-type]


def plans_kept(store: Store) -> int:
    """How many plans for reading are kept."""
    return len(store._reader._plans._plans)


async def write_postings(store: Store) -> None:
    """Write all postings that are waiting."""
    await store.postings.write()


# --- faults


async def limit_size(store: Store, pages: int) -> None:
    """Let the disk be full when the database has this many pages (or as many as now); temporary tables may grow."""
    await store.database.write(f"PRAGMA main.max_page_count = {pages}")


async def interrupted(store: Store, step: int, work: Callable[[], Awaitable[object]]) -> StorageFailed | None:
    """Interrupt SQLite after this many instructions of its virtual machine; return the error of the work, if any."""
    writing = store.database.writer
    count = 0

    def stop() -> int:
        nonlocal count
        count += 1
        if count == step:
            writing._conn.interrupt()
        return 0  # any other value would also fail a statement that is already complete

    await on_each_step(writing, stop)
    try:
        await work()
    except StorageFailed as error:
        return error
    else:
        return None
    finally:
        await on_each_step(writing, None)


def break_start(put: Put, part: str) -> None:
    """Let this part of the engine fail while it is opened, as on a failing disk."""

    async def broken(self: object) -> None:
        raise sqlite3.OperationalError("a disk that fails")

    holder, name = {"ledger": (Ledger, "load"), "writer": (writer.Writer, "load"), "database": (Database, "_open")}[
        part
    ]
    put(holder, name, broken)


def hide_runs(put: Put, store: Store) -> None:
    """Let the lookup of keys in runs fail."""
    put(store.ledger, "_run_tables", ("nowhere",))


def filter_bits(keys: KeyFilter) -> bytes:
    """All bits of a filter."""
    return bytes(keys._bits)


def set_filter_bits(keys: KeyFilter, bits: bytes) -> None:
    """Set the bits of a filter to exactly these, which the product never does."""
    keys._bits[:] = bits


def forget_keys(store: Store) -> None:
    """Let the store's filter forget every key."""
    set_filter_bits(store.ledger.filter, bytes(len(filter_bits(store.ledger.filter))))


def before_each_work(put: Put, call: Callable[[Database], Awaitable[None]]) -> None:
    """Call ``call`` before each piece of the ledger's work."""
    do_work = Ledger.work

    async def work(self: Ledger, quiet: bool) -> None:
        await call(self._database)
        await do_work(self, quiet)

    put(Ledger, "work", work)
