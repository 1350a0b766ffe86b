"""Where a key is looked up, and what that costs, in instructions of SQLite's virtual machine."""

from __future__ import annotations

import itertools
from functools import partial

import pytest

from aggregator.storage.sqlite.store import Store
from tests.harness import storage
from tests.harness.database_check import check_database
from tests.harness.keys import append, keys_of, seqs_of
from tests.harness.storage import OpenStore


async def test_more_runs_than_sqlite_takes_arguments(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges may fall behind when the disk is nearly full. Lookups are slow then, but work."""
    storage.shrink_ledger(monkeypatch.setattr, keys=1, fanout=1000)
    store = await open_store()
    keys = keys_of("k", 240)
    for key in keys:
        await append(store, [key])
        await storage.flush(store)
    assert len(storage.runs(store)) == 240
    assert await append(store, keys) == (241, {i: i + 1 for i in range(240)})
    assert await seqs_of(store, keys[::10]) == list(range(1, 241, 10))
    store = await open_store()
    storage.set_fanout(monkeypatch.setattr, 8)
    await append(store, keys_of("last", 1))
    await storage.flush(store)
    await storage.finish_work(store)

    assert [run for run in storage.runs(store) if run > (2, 0)] == [(2, 100), (2, 100), (2, 41)]
    assert await append(store, keys) == (482, {i: i + 1 for i in range(240)})
    await store.close()
    check_database(store.database.path)


async def test_what_keys_cost_does_not_grow_with_their_number(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New keys touch nothing of the past. Old keys cost a lookup in each run, whatever its size."""
    storage.shrink_ledger(monkeypatch.setattr, keys=100, fanout=4, least=100, most=1000)
    store = await open_store()

    async def measure(number: int) -> tuple[int, int, int]:
        new = await storage.steps(store.database.writer, lambda: append(store, keys_of(f"new{number}", 20)))
        old = await storage.steps(store.database.writer, lambda: append(store, keys_of("k0", 20)))
        return new, old, len(storage.runs_in_use(store))

    for number in range(2):
        await append(store, keys_of(f"k{number}", 100))
        await storage.flush(store)
    measured = [await measure(0)]
    for number in range(2, 60):
        await append(store, keys_of(f"k{number}", 100))
        await storage.flush(store)
        if number % 20 == 19:
            measured.append(await measure(number))
    await store.close()

    (new, old, runs), *later = measured
    assert runs == 2
    assert max(later_runs for _, _, later_runs in later) > 5
    for later_new, later_old, later_runs in later:
        assert later_new < new * 1.1
        assert later_old < old + 20 * 15 * (later_runs - runs)


async def test_what_is_sent_again_in_its_order_is_looked_for_in_one_run(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.shrink_ledger(monkeypatch.setattr, keys=100, fanout=20)
    store = await open_store()
    for number in range(12):
        await append(store, keys_of(f"k{number}", 100))
        await storage.flush(store)
    assert store.ledger.run_count == 12

    found_there = []
    for number in range(12):
        keys = keys_of(f"k{number}", 100)
        await append(store, keys[:50])
        found_there.append(await storage.steps(store.database.writer, partial(append, store, keys[50:])))
    await append(store, keys_of("k0", 100))
    found_elsewhere = await storage.steps(store.database.writer, partial(append, store, keys_of("k5", 50)))

    assert max(found_there) < 1.1 * min(found_there)
    assert found_elsewhere > 3 * min(found_there)


async def test_keys_are_looked_for_in_the_newest_run_first_and_in_what_the_expected_one_became(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.shrink_ledger(monkeypatch.setattr, keys=100, fanout=4)
    numbers = itertools.count()

    async def add_runs(store: Store, count: int) -> None:
        for _ in range(count):
            await append(store, keys_of(f"k{next(numbers)}", 100))
            await storage.flush(store)
        await storage.finish_work(store)

    async def found(store: Store, number: int) -> int:
        return await storage.steps(store.database.writer, partial(append, store, keys_of(f"k{number}", 50)))

    store = await open_store()
    await add_runs(store, 3)
    await found(store, 0)
    await add_runs(store, 1 + 2)
    assert [keys for _, keys in storage.runs_in_use(store)] == [400, 100, 100]
    in_merged = await found(store, 0)
    store = await open_store()
    in_oldest = await found(store, 0)
    store = await open_store()
    in_newest = await found(store, 5)

    assert in_newest < 0.9 * in_oldest
    assert in_merged == pytest.approx(in_newest, rel=0.05)
