"""The store by itself: no statement's work may grow with the table, and the settings that make an ack durable."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiosqlite
import pytest

from aggregator.database_file import StoreUnusable
from aggregator.event import Event, Events
from aggregator.store import Store
from tests.checker import check_database


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "events.db")
    yield opened
    await opened.close()
    check_database(opened.path)


def made(prefix: str, count: int, topics: int = 3) -> list[Event]:
    return [Event.of(f"t{i % topics}", f"{prefix}-{i}", b'{"n":%d}' % i) for i in range(count)]


async def append(store: Store, events: list[Event]) -> tuple[int, dict[int, int]]:
    batch = store.new_batch()
    batch.add(Events.of(events))
    return await store.append(batch), batch.duplicates


async def steps(connection: aiosqlite.Connection, work: Callable[[], Awaitable[object]]) -> int:
    """How many instructions of SQLite's virtual machine some work takes: exact, whatever else the machine does."""
    count = 0

    def one_more() -> int:
        nonlocal count
        count += 1
        return 0

    await connection.set_progress_handler(one_more, 1)
    await work()
    await connection.set_progress_handler(None, 0)  # type: ignore[arg-type]
    return count


async def test_a_batch_takes_no_more_work_when_the_table_is_large(store: Store) -> None:
    await append(store, made("first", 100))
    small = await steps(store._writer, lambda: append(store, made("a", 10) + made("first", 5)))
    await append(store, made("many", 50_000))
    large = await steps(store._writer, lambda: append(store, made("b", 10) + made("first", 5)))

    assert large < small * 1.1


@pytest.mark.parametrize(
    "read",
    [
        lambda store: store.events("t1", 10, None, 1 << 20),
        lambda store: store.events("t1", 10, 30, 1 << 20),
        lambda store: store.event("t1", "first-1"),
        lambda store: store.topics(10, ""),
    ],
    ids=["EVENTS", "EVENTS AFTER", "EVENT", "TOPICS"],
)
async def test_an_answer_takes_no_more_work_when_the_table_is_large(
    store: Store, read: Callable[[Store], Awaitable[object]]
) -> None:
    await append(store, made("first", 10_000))
    small = await steps(store._reader, lambda: read(store))
    await append(store, made("many", 50_000))
    large = await steps(store._reader, lambda: read(store))

    assert large < small * 1.1


async def test_readers_are_answered_while_tables_come_and_go(store: Store) -> None:
    """Faster than SQLite prepares a statement again: small runs that are merged, at their worst."""
    await append(store, made("a", 10))
    enough = threading.Event()

    def make_and_drop() -> None:
        with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("PRAGMA synchronous = OFF")
            while not enough.is_set():
                other.executescript("CREATE TABLE passing (n); DROP TABLE passing")

    thread = threading.Thread(target=make_and_drop)
    thread.start()
    try:
        for _ in range(200):
            assert len((await store.events("t1", 10, None, 1 << 20))[0]) == 3
            assert len(await store.topics(10, "")) == 3
            assert await store.event("t1", "a-1")
    finally:
        enough.set()
        thread.join()


async def test_every_commit_is_fsynced_into_a_wal(store: Store) -> None:
    for name, value in (("journal_mode", "wal"), ("synchronous", 2), ("wal_autocheckpoint", 0)):
        assert list(await store._writer.execute_fetchall(f"PRAGMA {name}")) == [(value,)]


async def test_statuses_come_from_the_database(store: Store) -> None:
    assert await append(store, made("a", 4)) == (1, {})
    assert await append(store, made("a", 2) + made("b", 2) + made("b", 1)) == (5, {0: 1, 1: 2, 4: 7})
    assert (store.stored_total, store.topics_total) == (6, 3)


async def test_a_database_in_use_is_refused(store: Store) -> None:
    with pytest.raises(StoreUnusable, match="in use by another aggregator"):
        await Store.open(store.path)


async def test_nothing_of_a_file_is_left_when_it_is_closed_well(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "events.db")
    await append(store, made("a", 10))
    assert store.wal_bytes > 0
    await store.close()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.db", "events.db.lock"]


async def test_the_wal_is_checkpointed_into_the_database(store: Store) -> None:
    await append(store, made("a", 14_000))
    assert store.backlog_bytes > store.db_bytes
    await store.checkpoint()

    assert store.backlog_bytes == 0
    assert store.db_bytes > 250_000
    assert store.last_checkpoint.error is None
