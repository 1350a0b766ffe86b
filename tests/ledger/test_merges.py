"""Flushes and merges: when they happen, and what they write."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from aggregator.storage.sqlite import ledger
from tests.harness import storage
from tests.harness.database_check import check_database
from tests.harness.keys import append, keys_of
from tests.harness.storage import OpenStore


@pytest.mark.parametrize(
    ("memtable", "least", "most", "sizes"),
    [(16, 8, 256, [1, 3, 12, 12, 40]), (16, 4, 8, [40]), (2, 64, 256, [1, 3])],
    ids=["batches of any size", "batches larger than slices", "runs smaller than slices"],
)
async def test_after_a_long_history_few_tables_are_looked_into_and_little_was_merged(
    open_store: OpenStore,
    monkeypatch: pytest.MonkeyPatch,
    memtable: int,
    least: int,
    most: int,
    sizes: list[int],
) -> None:
    """There is never a quiet moment, so the pace of the merges has to be enough."""
    fanout = 4
    storage.shrink_ledger(monkeypatch.setattr, memtable, fanout, least, most)
    store = await open_store()
    runs = Counter[int]()
    seeded = random.Random(1)
    keys_stored = rows_written = flushes = 0
    while flushes < 250:
        count = seeded.choice(sizes)
        number = store.ledger.memtable
        await append(store, keys_of(f"k{keys_stored}", count))
        keys_stored += count
        flushes += store.ledger.memtable != number
        before = storage.rows_changed(store)
        await storage.work(store, quiet=False)
        rows_written += storage.rows_changed(store) - before
        for level, in_use in Counter(level for level, _ in storage.runs_in_use(store)).items():
            runs[level] = max(runs[level], in_use)
    await store.close()
    check_database(store.database.path)

    assert len(runs) == 4, "250 flushes > 4^3"
    assert max(runs.values()) <= 2 * fanout
    # Each key is written once for each level and once taken from the memtable; each flush changes a few other rows.
    assert rows_written < keys_stored * (len(runs) + 1) + 10 * flushes


async def test_what_is_sent_again_makes_no_runs(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memtable becomes a run at a number of bytes that a start would read again; only new events count."""
    storage.shrink_ledger(monkeypatch.setattr, keys=1000)
    storage.set_memtable(monkeypatch.setattr, event_bytes=50_000)
    store = await open_store()
    await append(store, keys_of("k", 20), padding=1000)
    for _ in range(50):
        await append(store, keys_of("k", 20), padding=1000)
        await storage.flush(store)
    assert store.ledger.run_count == 0
    await append(store, keys_of("more", 40), padding=1000)
    await storage.flush(store)

    assert store.ledger.run_count == 1
    assert await append(store, keys_of("k", 20)) == (1061, {i: i + 1 for i in range(20)})


async def test_a_run_that_was_merged_is_dropped_without_being_written(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some builds of SQLite write zeros over freed pages, through the WAL: as much as the merge wrote."""
    storage.shrink_ledger(monkeypatch.setattr, keys=20_000, fanout=2, least=20_000, most=20_000)
    store = await open_store()
    for number in range(2):
        await append(store, keys_of(f"k{number}", 20_000))
        await storage.flush(store)
    await storage.merge(store)
    await storage.empty_wal(store)
    assert storage.tables_to_drop(store) == 2
    await storage.finish_work(store)

    assert store.database.wal_bytes < 0.1 * 20_000 * ledger.KEY_ROW_BYTES
    await store.close()
    check_database(store.database.path)
