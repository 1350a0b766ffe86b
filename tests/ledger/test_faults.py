"""The ledger when SQLite fails: a full disk, a failing lookup, an error at any step, a foreign writer."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest

from aggregator.storage.engine import StorageBusy, StorageFailed, StorageFull
from aggregator.storage.sqlite.store import Store
from tests.harness import storage
from tests.harness.database_check import check_database
from tests.harness.keys import Model, append, event_of, keys_of, seqs_of
from tests.harness.other_program import holding_the_lock
from tests.harness.storage import OpenStore


async def test_a_batch_that_found_the_disk_full_leaves_nothing_behind(tiny: Store) -> None:
    old, wanted = keys_of("old", 3), keys_of("wanted", 6)
    assert await append(tiny, old) == (1, {})
    await storage.limit_size(tiny, 1)
    with pytest.raises(StorageFull):
        await append(tiny, old + wanted, padding=5000)
    with pytest.raises(StorageFull):
        await append(tiny, old[:1] + wanted, padding=5000)
    await storage.limit_size(tiny, storage.NO_LIMIT)

    assert await seqs_of(tiny, wanted) == [None] * 6
    assert await append(tiny, keys_of("others", 2)) == (4, {}), "with fewer keys to look up than the ones that failed"
    assert await append(tiny, wanted + old[1:]) == (6, {6: 2, 7: 3})
    assert (tiny.stored_total, tiny.topics_total) == (11, 3)
    await tiny.close()
    check_database(tiny.database.path)


async def test_nothing_is_stored_when_the_look_up_fails(tiny: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old, other = keys_of("old", 5), keys_of("other", 3)
    await append(tiny, old)
    await storage.flush(tiny)
    await storage.limit_size(tiny, 1)
    with pytest.raises(StorageFull):  # the lookup before it succeeded
        await append(tiny, old + keys_of("more", 9), padding=5000)
    await storage.limit_size(tiny, storage.NO_LIMIT)
    before = await tiny.database.write("SELECT * FROM totals")
    with monkeypatch.context() as patch:
        storage.hide_runs(patch.setattr, tiny)
        for keys in (old, old + other, old + keys_of("more", 9)):
            with pytest.raises(StorageFailed, match="no such table"):
                await append(tiny, keys)

    assert await tiny.database.write("SELECT * FROM totals") == before
    assert await seqs_of(tiny, other) == [None] * 3
    assert await append(tiny, old + other) == (before[0][1], {i: i + 1 for i in range(5)})


async def test_an_append_that_fails_at_any_step_stores_nothing_or_all(open_store: OpenStore) -> None:
    store, model = await open_store(), Model()
    old = keys_of("old", 4)
    assert await append(store, old) == model.append([event_of(key) for key in old])
    outcomes = Counter[str]()
    for step in range(1, 1200, 4):
        keys = [old[step % 4], *keys_of(f"at-{step}", 3), old[0], (f"topic {step}", "e")]
        keys.append(keys[1])
        events = [event_of(key) for key in keys]
        error = await storage.interrupted(store, step, partial(append, store, keys))
        outcomes[str(error)] += 1
        if str(error) != "interrupted (SQLITE_INTERRUPT)":
            model.append(events)
        assert await append(store, keys) == model.append(events)
    await store.close()
    check_database(store.database.path)

    assert outcomes.keys() >= {"interrupted (SQLITE_INTERRUPT)", "None"}
    assert outcomes["interrupted (SQLITE_INTERRUPT)"] > 100


async def test_work_that_fails_at_any_step_is_done_later(open_store: OpenStore) -> None:
    store, model = await open_store(), Model()
    stopped = Counter[bool]()
    for step in range(1, 450, 3):
        keys = keys_of(f"at-{step}", 3)
        assert await append(store, keys) == model.append([event_of(key) for key in keys])
        error = await storage.interrupted(store, step % 199, partial(storage.work, store, quiet=True))
        stopped[error is not None] += 1
        if step % 50 == 1:
            store = await open_store()
        some = list(model.seqs)[:: step % 5 + 15]
        assert await seqs_of(store, some) == [model.seqs[key] for key in some]
        for _ in range(3):
            await storage.work(store, quiet=True)
    keys = list(model.seqs)
    assert await append(store, keys) == model.append([event_of(key) for key in keys])
    await storage.finish_work(store)
    assert max(level for level, _ in storage.runs(store)) > 4
    await store.close()
    check_database(store.database.path)

    assert min(stopped.values()) > 20


async def test_a_flush_and_a_merge_that_find_the_disk_full_are_done_when_it_has_space(
    tiny: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.shrink_ledger(monkeypatch.setattr, keys=200, least=100, most=200)  # a few pages for each run
    keys = keys_of("k", 400)
    for start in (0, 200):
        await append(tiny, keys[start : start + 200])
        await storage.limit_size(tiny, 1)
        for _ in range(2):
            with pytest.raises(StorageFull):
                await storage.work(tiny, quiet=False)
        assert await seqs_of(tiny, keys[: start + 200 : 20]) == list(range(1, start + 201, 20))
        await storage.limit_size(tiny, storage.NO_LIMIT)
        await storage.flush(tiny)
    await storage.limit_size(tiny, 1)
    for _ in range(2):
        with pytest.raises(StorageFull):
            await storage.finish_work(tiny)
    assert await append(tiny, keys) == (401, {i: i + 1 for i in range(400)})
    await storage.limit_size(tiny, storage.NO_LIMIT)
    await storage.finish_work(tiny)

    assert storage.runs(tiny) == [(2, 400)]
    assert await append(tiny, keys) == (801, {i: i + 1 for i in range(400)})
    await tiny.close()
    check_database(tiny.database.path)


async def test_a_foreign_writer_delays_a_flush_and_a_merge(tiny: Store) -> None:
    keys = keys_of("k", 16)
    runs = []
    for start in (0, 8):
        await append(tiny, keys[start : start + 8])
        with holding_the_lock(tiny.database.path):
            with pytest.raises(StorageBusy):
                await storage.work(tiny, quiet=False)
            assert await seqs_of(tiny, keys[:start]) == list(range(1, start + 1))
        await storage.flush(tiny)
        runs.append(len(storage.runs(tiny)))
    with holding_the_lock(tiny.database.path), pytest.raises(StorageBusy):
        await storage.work(tiny, quiet=True)  # a slice of the merge
    await storage.finish_work(tiny)

    assert runs == [1, 3]
    assert storage.runs(tiny) == [(2, 16)]
    assert await append(tiny, keys) == (17, {i: i + 1 for i in range(16)})
