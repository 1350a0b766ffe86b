"""The SQLite engine alone: no statement does more work in a larger table, and the settings make acks durable."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from aggregator.storage.engine import StorageUnusable
from aggregator.storage.sqlite.store import Store
from aggregator.storage.sqlite.writer import SEEN_TOPICS
from tests.harness import storage
from tests.harness.background import in_background
from tests.harness.database_check import check_database
from tests.harness.keys import append, keys_of
from tests.harness.pages import page


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await storage.open_store(tmp_path / "events.db")
    yield opened
    await opened.close()
    check_database(opened.database.path)


async def test_a_batch_takes_no_more_work_when_the_table_is_large(store: Store) -> None:
    await append(store, keys_of("first", 100))
    small = await storage.steps(store.database.writer, lambda: append(store, keys_of("a", 10) + keys_of("first", 5)))
    await append(store, keys_of("many", 50_000))
    large = await storage.steps(store.database.writer, lambda: append(store, keys_of("b", 10) + keys_of("first", 5)))

    assert large < small * 1.1


@pytest.mark.parametrize(
    "read",
    [
        lambda store: page(store, "t1", 10),
        lambda store: page(store, "t1", 10, 30),
        lambda store: store.event("t1", "first-1"),
        lambda store: store.topics(10, ""),
    ],
    ids=["EVENTS", "EVENTS AFTER", "EVENT", "TOPICS"],
)
async def test_an_answer_takes_no_more_work_when_the_table_is_large(
    store: Store, read: Callable[[Store], Awaitable[object]]
) -> None:
    await append(store, keys_of("first", 10_000))
    await storage.write_postings(store)  # as upkeep does in parallel with the next batch
    small = await storage.steps(store.database.reader, lambda: read(store))
    await append(store, keys_of("many", 50_000))
    await storage.write_postings(store)
    large = await storage.steps(store.database.reader, lambda: read(store))

    assert large < small * 1.1


async def test_readers_are_answered_while_tables_come_and_go(store: Store) -> None:
    """Tables come and go faster than SQLite prepares a statement again: the worst case when small runs are merged."""
    await append(store, keys_of("a", 10))
    enough = threading.Event()

    def make_and_drop() -> None:
        with contextlib.closing(sqlite3.connect(store.database.path, isolation_level=None)) as other:
            other.execute("PRAGMA synchronous = OFF")
            while not enough.is_set():
                other.executescript("CREATE TABLE passing (n); DROP TABLE passing")

    with in_background(make_and_drop):
        try:
            for _ in range(200):
                assert len(await page(store, "t1", 10)) == 3
                assert len(await store.topics(10, "")) == 3
                assert await store.event("t1", "a-1")
        finally:
            enough.set()


async def test_every_commit_is_fsynced_into_a_wal(store: Store) -> None:
    for name, value in (("journal_mode", "wal"), ("synchronous", 2), ("wal_autocheckpoint", 0)):
        assert list(await store.database.writer.execute_fetchall(f"PRAGMA {name}")) == [(value,)]


async def test_statuses_come_from_the_database(store: Store) -> None:
    assert await append(store, keys_of("a", 4)) == (1, {})
    assert await append(store, keys_of("a", 2) + keys_of("b", 2) + keys_of("b", 1)) == (5, {0: 1, 1: 2, 4: 7})
    assert (store.stored_total, store.topics_total) == (6, 3)


async def test_a_database_in_use_is_refused(store: Store) -> None:
    with pytest.raises(StorageUnusable, match="in use by another aggregator"):
        await storage.open_store(store.database.path)


async def test_nothing_of_a_file_is_left_when_it_is_closed_well(tmp_path: Path) -> None:
    store = await storage.open_store(tmp_path / "events.db")
    await append(store, keys_of("a", 10))
    assert store.database.wal_bytes > 0
    await store.close()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.db", "events.db.lock"]


async def test_the_wal_is_checkpointed_into_the_database(store: Store) -> None:
    await append(store, keys_of("a", 14_000))
    assert store.database.wal_bytes > store.database.db_bytes
    assert store.upkeep_left
    while store.upkeep_left:
        await store.upkeep(quiet=True)

    assert store.database.db_bytes > 250_000
    assert store.wal.last.error is None


async def test_more_topics_than_are_remembered_are_counted_right(store: Store) -> None:
    counted = []
    for first, last in ((0, 9000), (0, 9000), (5000, 14_000), (0, 100), (14_000, 14_001), (0, 14_001)):
        await append(store, [(f"topic {i}", f"e{first}-{last}-{i % 2}") for i in range(first, last)])
        counted.append(store.topics_total)
        assert storage.topics_remembered(store) <= max(SEEN_TOPICS, last - first)

    assert counted == [9000, 9000, 14_000, 14_000, 14_001, 14_001]
