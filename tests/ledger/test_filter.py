"""The ledger and its filter: keys that the filter does not know yet, and what would happen if it forgot keys."""

from __future__ import annotations

import itertools

import pytest

from aggregator.event import Events, digest
from aggregator.storage.engine import StorageFailed
from aggregator.storage.sqlite.key_filter import ALL
from aggregator.storage.sqlite.store import Store
from tests.harness import storage
from tests.harness.database_check import check_database
from tests.harness.keys import Key, append, event_of, keys_of, seqs_of
from tests.harness.storage import OpenStore


async def test_no_key_is_called_new_that_is_not_while_the_filter_is_filled_again(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.set_memtable(monkeypatch.setattr, keys=50)
    store = await open_store()
    seqs: dict[Key, int] = {}
    for number in range(6):
        keys = keys_of(f"k{number}", 40)
        first_seq, _ = await append(store, keys)
        seqs |= {key: first_seq + i for i, key in enumerate(keys)}
        await storage.work(store, quiet=False)
    storage.set_filter_slice(monkeypatch.setattr, 10)
    store = await open_store()
    assert store.ledger.filter.known_below == 0
    called_new = []
    for number in itertools.count():
        known_below = store.ledger.filter.known_below
        keys = [*list(seqs)[number % 7 :: 7], *keys_of(f"meanwhile{number}", 9)]
        batch = store.new_batch()
        batch.add(Events.of(event_of(key) for key in keys))
        maybe_stored = set(batch.maybe_stored)
        called_new.append(len(batch) - len(maybe_stored))
        assert all(key not in seqs for key in keys if digest(*key) not in maybe_stored)
        commit = await store.append(batch)
        assert commit.duplicates == {i: seqs[key] for i, key in enumerate(keys) if key in seqs}
        seqs |= {key: seq for key, seq in zip(keys, commit.seqs, strict=True) if key not in seqs}
        if known_below == ALL:
            break
        await storage.work(store, quiet=False)  # flushes and merges as well, between two slices of the filter
    await store.close()
    check_database(store.database.path)

    assert number > 10, "it takes many slices"
    assert (called_new[0], called_new[-1]) == (0, 9), "from nothing to everything that is new"
    assert any(0 < count < 9 for count in called_new)


async def test_a_filter_that_has_forgotten_a_key_of_the_memtable_fails_the_append(tiny: Store) -> None:
    keys = keys_of("k", 3)
    await append(tiny, keys)
    storage.forget_keys(tiny)
    before = await tiny.database.write("SELECT * FROM totals")
    with pytest.raises(StorageFailed, match="UNIQUE constraint failed: memtable_0"):
        await append(tiny, [*keys_of("fresh", 2), keys[1]])

    assert await tiny.database.write("SELECT * FROM totals") == before
    assert await seqs_of(tiny, keys_of("fresh", 2)) == [None, None]
    await tiny.close()
    check_database(tiny.database.path)


async def test_a_filter_that_has_forgotten_a_key_of_a_run_is_found_out_by_the_merge(tiny: Store) -> None:
    """By then it is too late, because the event is stored twice: this is why no bit is ever cleared."""
    keys = keys_of("k", 4)
    for _ in range(2):
        storage.forget_keys(tiny)
        _, duplicates = await append(tiny, keys)
        assert duplicates == {}
        await storage.flush(tiny)
    with pytest.raises(StorageFailed, match="UNIQUE constraint failed"):
        await storage.finish_work(tiny)
