"""The key ledger against a plain dict: whatever is sent again, at any moment and after any fault, is known under its
first seq. All its constants are made tiny here, so that a few dozen keys pass through flushes, merges and levels.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import shutil
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from aggregator import block, event, ledger, postings
from aggregator import memtable as memtable_module
from aggregator import store as store_module
from aggregator.batch import Batch
from aggregator.event import Event, Events
from aggregator.key_filter import ALL
from aggregator.store import SEEN_TOPICS, StorageBusy, StorageFailed, StorageFull, Store
from tests.checker import Ledger as Sent
from tests.checker import Sender, check_database
from tests.conftest import StartServer
from tests.server_process import SMALL_LEDGER, changed, wait_until
from tests.test_key_filter import shrink_filter
from tests.test_store import steps
from tests.wire import exchange

Key = tuple[str, str]

HEADS: Final = {
    "spread": (),
    "all the same": (b"\0\0\0\0",),
    "all the last": (b"\xff\xff\xff\xff",),
    "few, next to each other and at both ends": (b"\0\0\0\0", b"\0\0\0\1", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff"),
}
"""What the digests of keys may begin with: the filter, and the slices of a merge, go by these 32 bits."""


def shrink_ledger(patch: pytest.MonkeyPatch, memtable: int = 4, fanout: int = 2, least: int = 2, most: int = 4) -> None:
    """Make the ledger flush after ``memtable`` keys, and merge ``least`` to ``most`` of them at a time."""
    patch.setattr(memtable_module, "MEMTABLE_KEYS", memtable)
    patch.setattr(ledger, "FANOUT", fanout)
    patch.setattr(ledger, "SLICE_KEYS", least)
    patch.setattr(ledger, "MAX_SLICE_KEYS", most)
    patch.setattr(ledger, "FILL_KEYS", most)
    patch.setattr(ledger, "_REFILL_BLOCKS", 3)


def crowd_digests(patch: pytest.MonkeyPatch, heads: Sequence[bytes]) -> None:
    """Let every digest begin with one of ``heads``; none: leave them as they are."""

    def crowded(data: bytes) -> SimpleNamespace:
        digest = hashlib.blake2s(data).digest()
        return SimpleNamespace(digest=lambda: heads[digest[-1] % len(heads)] + digest[4:])

    if heads:
        patch.setattr(event, "_blake2s", crowded)


def made(key: Key, number: int, padding: int = 0) -> Event:
    """An event that is told apart from others with its key by ``number``."""
    topic, event_id = key
    return Event.of(topic, event_id, b'{"event_id":"%s","n":%d,"x":"%s"}' % (event_id.encode(), number, b"x" * padding))


class Model:
    """What a store is to do, as a dict and a list."""

    def __init__(self) -> None:
        self.next_seq = 1
        self.seqs: dict[Key, int] = {}
        self.stored: list[tuple[int, Event]] = []

    def append(self, events: list[Event]) -> tuple[int, dict[int, int]]:
        first_seq, duplicates = self.next_seq, {}
        for position, one in enumerate(events):
            seq = self.seqs.setdefault((one.topic, one.event_id), first_seq + position)
            if seq == first_seq + position:
                self.stored.append((seq, one))
            else:
                duplicates[position] = seq
        self.next_seq += len(events)
        return first_seq, duplicates

    def of_topic(self, topic: str) -> list[tuple[int, bytes]]:
        return [(seq, one.json) for seq, one in self.stored if one.topic == topic]


TOPICS: Final = ("a", "b", "rare")
some_keys = st.tuples(
    st.sampled_from(["a"] * 6 + ["b"] * 6 + ["rare"]), st.integers(0, 60).map(lambda number: f"e{number}")
)
some_batches = st.lists(some_keys, min_size=1, max_size=10)


class StoreMachine(RuleBasedStateMachine):
    """Appends, work, faults and restarts in any order; every answer is compared with the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(store_module, "BUSY_TIMEOUT_S", 0.0)
        self.patch.setattr(block, "BLOCK_EVENTS", 4)
        self.patch.setattr(block, "BLOCK_BYTES", 3000)
        self.patch.setattr(store_module, "SEEN_TOPICS", 2)
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
        self.model = Model()
        self.number = 0
        self.store: Store

    @initialize(
        memtable=st.integers(1, 6),
        fanout=st.integers(2, 3),
        least=st.integers(1, 3),
        most=st.integers(3, 9),
        postings_due=st.integers(1, 20),
        filter_bits=st.sampled_from([0, 3, 14]),
        heads=st.sampled_from(list(HEADS)),
    )
    def open(
        self, memtable: int, fanout: int, least: int, most: int, postings_due: int, filter_bits: int, heads: str
    ) -> None:
        shrink_ledger(self.patch, memtable, fanout, least, most)
        self.patch.setattr(postings, "DUE", postings_due)
        shrink_filter(self.patch, filter_bits)
        crowd_digests(self.patch, HEADS[heads])
        self.store = self.runner.run(Store.open(self.folder / "events.db"))

    def filled(self, keys: list[Key], padding: int = 0) -> tuple[Batch, list[Event]]:
        """A batch, filled in two parts."""
        events = []
        for key in keys:
            self.number += 1
            events.append(made(key, self.number, padding))
        batch = self.store.new_batch()
        middle = len(events) // 2
        for part in (events[:middle], events[middle:]):
            batch.add(Events.of(part))
        return batch, events

    def append(self, batch: Batch, events: list[Event]) -> None:
        first_seq = self.runner.run(self.store.append(batch))
        assert (first_seq, batch.duplicates) == self.model.append(events)

    @rule(keys=some_batches)
    def one_batch(self, keys: list[Key]) -> None:
        self.append(*self.filled(keys))

    @rule(first=some_batches, second=some_batches, quiet=st.booleans(), works=st.integers(0, 3))
    def a_batch_that_is_filled_while_the_one_before_commits(
        self, first: list[Key], second: list[Key], quiet: bool, works: int
    ) -> None:
        one, two = self.filled(first), self.filled(second)
        self.append(*one)
        for _ in range(works):
            self.runner.run(self.store.work(quiet))
        self.append(*two)

    @rule(
        first=some_batches,
        second=some_batches,
        fault=st.sampled_from([None, "full", "busy", "busy, and not tried again"]),
        quiet=st.booleans(),
    )
    def a_batch_that_is_decided_while_the_one_before_commits_or_fails(
        self, first: list[Key], second: list[Key], fault: str | None, quiet: bool
    ) -> None:
        one, two = self.filled(first, 2000), self.filled(second)

        async def append_decide_and_work() -> tuple[int | BaseException, object, object]:
            return await asyncio.gather(
                self.store.append(one[0]),
                self.store.decide(two[0]),
                self.store.work(quiet),
                return_exceptions=True,
            )

        with contextlib.closing(sqlite3.connect(self.store.path, isolation_level=None)) as other:
            if fault == "full":
                self.runner.run(self.store._write("PRAGMA max_page_count = 1"))
            elif fault:
                other.execute("BEGIN IMMEDIATE")
            appended, *_ = self.runner.run(append_decide_and_work())
        self.runner.run(self.store._write(f"PRAGMA max_page_count = {1 << 30}"))
        if not isinstance(appended, BaseException):
            assert (appended, one[0].duplicates) == self.model.append(one[1])
        elif fault == "busy":
            self.append(*one)
        else:
            assert fault, appended
        self.append(*two)

    @rule(count=st.integers(1, 12), topic=st.sampled_from(TOPICS), quiet=st.booleans())
    def new_keys_with_work_after_each_batch(self, count: int, topic: str, quiet: bool) -> None:
        for _ in range(count):
            self.append(*self.filled([(topic, f"new-{self.number}-{i}") for i in range(2)]))
            self.runner.run(self.store.work(quiet))

    @rule(start=st.integers(0, 1000), count=st.integers(1, 20))
    def all_again(self, start: int, count: int) -> None:
        keys = list(self.model.seqs)
        if keys:
            start %= len(keys)
            self.append(*self.filled(keys[start : start + count]))

    @rule(quiet=st.booleans(), times=st.integers(1, 12))
    def work(self, quiet: bool, times: int) -> None:
        for _ in range(times):
            self.runner.run(self.store.work(quiet))

    @rule()
    def checkpoint(self) -> None:
        self.runner.run(self.store.checkpoint())
        assert self.store.last_checkpoint.error is None

    @rule()
    def close_and_reopen(self) -> None:
        self.runner.run(self.store.close())
        self.store = self.runner.run(Store.open(self.store.path))

    @rule()
    def lose_power(self) -> None:
        """Go on with copies of the files as they are now, the WAL among them."""
        old = self.store.path.parent
        new = Path(tempfile.mkdtemp(dir=self.folder))
        for name in ("events.db", "events.db-wal"):
            if (old / name).exists():
                shutil.copy(old / name, new / name)
        self.runner.run(self.store.close())
        self.store = self.runner.run(Store.open(new / "events.db"))

    @rule(keys=some_batches, quiet=st.booleans(), padding=st.sampled_from([0, 2000]))
    def a_full_disk(self, keys: list[Key], quiet: bool, padding: int) -> None:
        set_size_limit = "PRAGMA max_page_count = {}"
        self.runner.run(self.store._write(set_size_limit.format(1)))  # SQLite takes the present size for the least
        attempts = [self.filled(keys, padding) for _ in range(2)]
        for batch, events in attempts:
            try:
                first_seq = self.runner.run(self.store.append(batch))
            except StorageFull:
                pass
            else:
                assert (first_seq, batch.duplicates) == self.model.append(events)
            with contextlib.suppress(StorageFull):
                self.runner.run(self.store.work(quiet))
        self.runner.run(self.store._write(set_size_limit.format(1 << 30)))

    @rule(keys=some_batches, quiet=st.booleans(), event_of=some_keys)
    def a_foreign_writer(self, keys: list[Key], quiet: bool, event_of: Key) -> None:
        other = sqlite3.connect(self.store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        batch, events = self.filled(keys)
        with pytest.raises(StorageBusy):
            self.runner.run(self.store.append(batch))
        with contextlib.suppress(StorageBusy):
            self.runner.run(self.store.work(quiet))
        self.one_event(event_of)
        other.close()
        self.append(batch, events)

    @rule(key=some_keys)
    def one_event(self, key: Key) -> None:
        self.compare_event(key, self.runner.run(self.store.event(*key)))

    @rule(keys=st.lists(some_keys, min_size=1, max_size=4), quiet=st.booleans())
    def events_that_are_asked_for_during_work(self, keys: list[Key], quiet: bool) -> None:
        async def ask() -> list[store_module.StoredEvent | None]:
            working = asyncio.create_task(self.store.work(quiet))
            found = await asyncio.gather(*(self.store.event(*key) for key in keys))
            await working
            return found

        for key, found in zip(keys, self.runner.run(ask()), strict=True):
            self.compare_event(key, found)

    def compare_event(self, key: Key, found: store_module.StoredEvent | None) -> None:
        seq = self.model.seqs.get(key)
        expected = None if seq is None else (seq, dict(self.model.stored)[seq].json)
        assert (None if found is None else (found.seq, found.json)) == expected

    @rule(topic=st.sampled_from(TOPICS), limit=st.integers(1, 9), after=st.none() | st.integers(0, 300))
    def a_page(self, topic: str, limit: int, after: int | None) -> None:
        found, _ = self.runner.run(self.store.events(topic, limit, after, 1 << 20))
        self.compare_page(found, topic, limit, after)

    def compare_page(self, found: list[store_module.StoredEvent], topic: str, limit: int, after: int | None) -> None:
        of_topic = self.model.of_topic(topic)
        expected = of_topic[::-1] if after is None else [one for one in of_topic if one[0] > after]
        assert [(one.seq, one.json) for one in found] == expected[:limit]

    @rule(pages=st.lists(st.tuples(st.sampled_from(TOPICS), st.none() | st.integers(0, 300)), min_size=1, max_size=4))
    def pages_that_are_asked_for_during_work(self, pages: list[tuple[str, int | None]]) -> None:
        async def ask() -> list[tuple[list[store_module.StoredEvent], bool]]:
            working = asyncio.create_task(self.store.work(quiet=False))
            found = await asyncio.gather(*(self.store.events(topic, 9, after, 1 << 20) for topic, after in pages))
            await working
            return found

        for (topic, after), (found, _) in zip(pages, self.runner.run(ask()), strict=True):
            self.compare_page(found, topic, 9, after)

    @invariant()
    def counters(self) -> None:
        topics = {topic for topic, _ in self.model.seqs}
        assert (self.store.stored_total, self.store.topics_total) == (len(self.model.seqs), len(topics))

    def teardown(self) -> None:
        try:
            for key in self.model.seqs:
                self.one_event(key)
            if self.model.seqs:
                self.append(*self.filled(list(self.model.seqs)))
            for topic in TOPICS:
                self.a_page(topic, 10_000, 0)
            found = self.runner.run(self.store.topics(10, ""))
            assert [(topic.name, topic.stored) for topic in found] == [
                (topic, len(events)) for topic in sorted(TOPICS) if (events := self.model.of_topic(topic))
            ]
            self.runner.run(finish_work(self.store))
            tables = self.runner.run(self.store._write("SELECT name FROM sqlite_schema WHERE name GLOB 'keys_*'"))
            runs = self.runner.run(self.store._write("SELECT 'keys_' || id FROM runs"))
            assert sorted(tables) == sorted(runs), "nothing is left of the runs that were merged"
            self.runner.run(self.store.close())
            check_database(self.store.path)
        finally:
            self.runner.run(self.store.close())
            self.runner.close()
            self.patch.undo()
            shutil.rmtree(self.folder)


def test_whatever_happens_the_store_answers_as_a_dict_would() -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(max_examples=60, stateful_step_count=30),
    )


OpenStore = Callable[[], Awaitable[Store]]


@pytest.fixture
async def open_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenStore]:
    """Open the store, again and again. Every fifth key starts a flush, every second flush a merge."""
    shrink_ledger(monkeypatch)
    monkeypatch.setattr(store_module, "BUSY_TIMEOUT_S", 0.0)
    opened: list[Store] = []

    async def open_again() -> Store:
        if opened:
            await opened[-1].close()
        opened.append(await Store.open(tmp_path / "events.db"))
        return opened[-1]

    yield open_again
    await opened[-1].close()


@pytest.fixture
async def tiny(open_store: OpenStore) -> Store:
    return await open_store()


def keys_of(prefix: str, count: int) -> list[Key]:
    return [(f"t{i % 3}", f"{prefix}-{i}") for i in range(count)]


async def append(store: Store, keys: list[Key], padding: int = 0) -> tuple[int, dict[int, int]]:
    batch = store.new_batch()
    batch.add(Events.of(made(key, 0, padding) for key in keys))
    return await store.append(batch), batch.duplicates


async def seqs_of(store: Store, keys: list[Key]) -> list[int | None]:
    found = [await store.event(*key) for key in keys]
    return [one.seq if one else None for one in found]


async def flush(store: Store) -> None:
    """Let a full memtable become a run; what that lets be merged is left."""
    while len(store.ledger._memtables) > 1 or any("memtable" in statement for statement in store.ledger._garbage):
        await store.work(quiet=True)


async def finish_work(store: Store) -> None:
    while store.work_left:
        await store.work(quiet=True)


async def limit_size(store: Store, pages: int) -> None:
    """Let the disk be full when the database has so many pages (or as many as it has now), but not for its memory."""
    await store._write(f"PRAGMA main.max_page_count = {pages}")


NO_LIMIT: Final = 1 << 30


async def test_a_batch_that_found_the_disk_full_leaves_nothing_behind(tiny: Store) -> None:
    old, wanted = keys_of("old", 3), keys_of("wanted", 6)
    assert await append(tiny, old) == (1, {})
    await limit_size(tiny, 1)
    with pytest.raises(StorageFull):
        await append(tiny, old + wanted, padding=5000)
    with pytest.raises(StorageFull):
        await append(tiny, old[:1] + wanted, padding=5000)
    await limit_size(tiny, NO_LIMIT)

    assert await seqs_of(tiny, wanted) == [None] * 6
    assert await append(tiny, keys_of("others", 2)) == (4, {}), "with fewer keys to look up than the ones that failed"
    assert await append(tiny, wanted + old[1:]) == (6, {6: 2, 7: 3})
    assert (tiny.stored_total, tiny.topics_total) == (11, 3)
    await tiny.close()
    check_database(tiny.path)


async def test_nothing_is_stored_when_the_look_up_fails(tiny: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old, other = keys_of("old", 5), keys_of("other", 3)
    await append(tiny, old)
    await flush(tiny)
    await limit_size(tiny, 1)
    with pytest.raises(StorageFull):  # its look-up succeeded
        await append(tiny, old + keys_of("more", 9), padding=5000)
    await limit_size(tiny, NO_LIMIT)
    before = await tiny._write("SELECT * FROM totals")
    with monkeypatch.context() as patch:
        patch.setattr(tiny.ledger, "_run_tables", ("nowhere",))
        for keys in (old, old + other, old + keys_of("more", 9)):
            with pytest.raises(StorageFailed, match="no such table"):
                await append(tiny, keys)

    assert await tiny._write("SELECT * FROM totals") == before
    assert await seqs_of(tiny, other) == [None] * 3
    assert await append(tiny, old + other) == (before[0][1], {i: i + 1 for i in range(5)})


async def interrupted(store: Store, step: int, work: Callable[[], Awaitable[object]]) -> StorageFailed | None:
    """Let SQLite fail after so many steps of its virtual machine; return what became of the work."""
    steps = 0

    def stop() -> int:
        nonlocal steps
        steps += 1
        if steps == step:
            store._writer._conn.interrupt()
        return 0  # another answer would fail a statement that is complete, too

    await store._writer.set_progress_handler(stop, 1)
    try:
        await work()
    except StorageFailed as error:
        return error
    else:
        return None
    finally:
        await store._writer.set_progress_handler(None, 0)  # type: ignore[arg-type]


async def test_an_append_that_fails_at_any_step_stores_nothing_or_all(open_store: OpenStore) -> None:
    store, model = await open_store(), Model()
    old = keys_of("old", 4)
    assert await append(store, old) == model.append([made(key, 0) for key in old])
    outcomes = Counter[str]()
    for step in range(1, 1200, 4):
        keys = [old[step % 4], *keys_of(f"at-{step}", 3), old[0], (f"topic {step}", "e")]
        keys.append(keys[1])
        events = [made(key, 0) for key in keys]
        error = await interrupted(store, step, partial(append, store, keys))
        outcomes[str(error)] += 1
        if str(error) != "interrupted (SQLITE_INTERRUPT)":
            model.append(events)
        assert await append(store, keys) == model.append(events)
    await store.close()
    check_database(store.path)

    assert outcomes.keys() >= {"interrupted (SQLITE_INTERRUPT)", "None"}
    assert outcomes["interrupted (SQLITE_INTERRUPT)"] > 100


async def test_work_that_fails_at_any_step_is_done_later(open_store: OpenStore) -> None:
    store, model = await open_store(), Model()
    stopped = Counter[bool]()
    for step in range(1, 450, 3):
        keys = keys_of(f"at-{step}", 3)
        assert await append(store, keys) == model.append([made(key, 0) for key in keys])
        error = await interrupted(store, step % 199, partial(store.work, quiet=True))
        stopped[error is not None] += 1
        if step % 50 == 1:
            store = await open_store()
        some = list(model.seqs)[:: step % 5 + 15]
        assert await seqs_of(store, some) == [model.seqs[key] for key in some]
        for _ in range(3):
            await store.work(quiet=True)
    keys = list(model.seqs)
    assert await append(store, keys) == model.append([made(key, 0) for key in keys])
    await finish_work(store)
    assert max(run.level for run in store.ledger._runs) > 4
    await store.close()
    check_database(store.path)

    assert min(stopped.values()) > 20


async def test_a_flush_and_a_merge_that_find_the_disk_full_are_done_when_it_has_space(
    tiny: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink_ledger(monkeypatch, memtable=200, least=100, most=200)  # a few pages for each run
    keys = keys_of("k", 400)
    for start in (0, 200):
        await append(tiny, keys[start : start + 200])
        await limit_size(tiny, 1)
        for _ in range(2):
            with pytest.raises(StorageFull):
                await tiny.work(quiet=False)
        assert await seqs_of(tiny, keys[: start + 200 : 20]) == list(range(1, start + 201, 20))
        await limit_size(tiny, NO_LIMIT)
        await flush(tiny)
    await limit_size(tiny, 1)
    for _ in range(2):
        with pytest.raises(StorageFull):
            await finish_work(tiny)
    assert await append(tiny, keys) == (401, {i: i + 1 for i in range(400)})
    await limit_size(tiny, NO_LIMIT)
    await finish_work(tiny)

    assert [(run.level, run.keys) for run in tiny.ledger._runs] == [(2, 400)]
    assert await append(tiny, keys) == (801, {i: i + 1 for i in range(400)})
    await tiny.close()
    check_database(tiny.path)


async def test_a_foreign_writer_delays_a_flush_and_a_merge(tiny: Store) -> None:
    keys = keys_of("k", 16)
    other = sqlite3.connect(tiny.path, isolation_level=None)
    runs = []
    for start in (0, 8):
        await append(tiny, keys[start : start + 8])
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageBusy):
            await tiny.work(quiet=False)
        assert await seqs_of(tiny, keys[:start]) == list(range(1, start + 1))
        other.execute("ROLLBACK")
        await flush(tiny)
        runs.append(len(tiny.ledger._runs))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageBusy):
        await tiny.work(quiet=True)  # a slice of the merge
    other.execute("ROLLBACK")
    other.close()
    await finish_work(tiny)

    assert runs == [1, 3]
    assert [(run.level, run.keys) for run in tiny.ledger._runs] == [(2, 16)]
    assert await append(tiny, keys) == (17, {i: i + 1 for i in range(16)})


async def test_no_key_is_called_new_that_is_not_while_the_filter_is_filled_again(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memtable_module, "MEMTABLE_KEYS", 50)
    store = await open_store()
    seqs: dict[Key, int] = {}
    for number in range(6):
        keys = keys_of(f"k{number}", 40)
        first_seq, _ = await append(store, keys)
        seqs |= {key: first_seq + i for i, key in enumerate(keys)}
        await store.work(quiet=False)
    monkeypatch.setattr(ledger, "FILL_KEYS", 10)
    store = await open_store()
    assert store.ledger.filter.known_below == 0
    called_new = []
    for number in itertools.count():
        known_below = store.ledger.filter.known_below
        keys = [*list(seqs)[number % 7 :: 7], *keys_of(f"meanwhile{number}", 9)]
        batch = store.new_batch()
        batch.add(Events.of(made(key, 0) for key in keys))
        called_new.append(len(batch) - len(batch.maybe))
        assert all(key not in seqs for position, key in enumerate(keys) if position not in batch.maybe)
        first_seq = await store.append(batch)
        assert batch.duplicates == {i: seqs[key] for i, key in enumerate(keys) if key in seqs}
        seqs |= {key: first_seq + i for i, key in enumerate(keys) if key not in seqs}
        if known_below == ALL:
            break
        await store.work(quiet=False)  # flushes and merges too, between two slices of the filter
    await store.close()
    check_database(store.path)

    assert number > 10, "it takes many slices"
    assert (called_new[0], called_new[-1]) == (0, 9), "from nothing to everything that is new"
    assert any(0 < count < 9 for count in called_new)


async def test_a_filter_that_has_forgotten_a_key_of_the_memtable_fails_the_append(tiny: Store) -> None:
    keys = keys_of("k", 3)
    await append(tiny, keys)
    tiny.ledger.filter._bits[:] = bytes(len(tiny.ledger.filter._bits))
    before = await tiny._write("SELECT * FROM totals")
    with pytest.raises(StorageFailed, match="UNIQUE constraint failed: memtable_0"):
        await append(tiny, [*keys_of("fresh", 2), keys[1]])

    assert await tiny._write("SELECT * FROM totals") == before
    assert await seqs_of(tiny, keys_of("fresh", 2)) == [None, None]
    await tiny.close()
    check_database(tiny.path)


async def test_a_filter_that_has_forgotten_a_key_of_a_run_is_found_out_by_the_merge(tiny: Store) -> None:
    """Too late, the event is there twice: this is why no bit is ever cleared."""
    keys = keys_of("k", 4)
    for _ in range(2):
        tiny.ledger.filter._bits[:] = bytes(len(tiny.ledger.filter._bits))
        _, duplicates = await append(tiny, keys)
        assert duplicates == {}
        await flush(tiny)
    with pytest.raises(StorageFailed, match="UNIQUE constraint failed"):
        await finish_work(tiny)


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
    """With never a quiet moment: the pace of the merges has to be enough."""
    fanout = 4
    shrink_ledger(monkeypatch, memtable, fanout, least, most)
    store = await open_store()
    writer, runs = store._writer, Counter[int]()
    seeded = random.Random(1)
    keys_stored = rows_written = flushes = 0
    while flushes < 250:
        count = seeded.choice(sizes)
        number = store.ledger.memtable
        await append(store, keys_of(f"k{keys_stored}", count))
        keys_stored += count
        flushes += store.ledger.memtable != number
        before = writer.total_changes
        await store.work(quiet=False)
        rows_written += writer.total_changes - before
        for level, in_use in Counter(run.level for run in store.ledger._complete()).items():
            runs[level] = max(runs[level], in_use)
    await store.close()
    check_database(store.path)

    assert len(runs) == 4, "250 flushes > 4^3"
    assert max(runs.values()) <= 2 * fanout
    # Each key once for each level, once taken from the memtable; and for each flush a few rows that say so.
    assert rows_written < keys_stored * (len(runs) + 1) + 10 * flushes


async def test_more_runs_than_sqlite_takes_arguments(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges may fall behind, when the disk is nearly full: then it is slow, but it goes on."""
    shrink_ledger(monkeypatch, memtable=1, fanout=1000)
    store = await open_store()
    keys = keys_of("k", 240)
    for key in keys:
        await append(store, [key])
        await flush(store)
    assert len(store.ledger._runs) == 240
    assert await append(store, keys) == (241, {i: i + 1 for i in range(240)})
    assert await seqs_of(store, keys[::10]) == list(range(1, 241, 10))
    store = await open_store()
    monkeypatch.setattr(ledger, "FANOUT", 8)
    await append(store, keys_of("last", 1))
    await flush(store)
    await finish_work(store)

    assert [(run.level, run.keys) for run in store.ledger._runs if run.level > 1] == [(2, 100), (2, 100), (2, 41)]
    assert await append(store, keys) == (482, {i: i + 1 for i in range(240)})
    await store.close()
    check_database(store.path)


async def test_what_keys_cost_does_not_grow_with_their_number(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in steps of SQLite's virtual machine. New keys: nothing of the past is touched. Old ones: a step into
    each run, whatever its size."""
    shrink_ledger(monkeypatch, memtable=100, fanout=4, least=100, most=1000)
    store = await open_store()

    async def measure(number: int) -> tuple[int, int, int]:
        new = await steps(store._writer, lambda: append(store, keys_of(f"new{number}", 20)))
        old = await steps(store._writer, lambda: append(store, keys_of("k0", 20)))
        return new, old, len(store.ledger._complete())

    for number in range(2):
        await append(store, keys_of(f"k{number}", 100))
        await flush(store)
    measured = [await measure(0)]
    for number in range(2, 60):
        await append(store, keys_of(f"k{number}", 100))
        await flush(store)
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
    shrink_ledger(monkeypatch, memtable=100, fanout=20)
    store = await open_store()
    for number in range(12):
        await append(store, keys_of(f"k{number}", 100))
        await flush(store)
    assert store.ledger.run_count == 12

    found_there = []
    for number in range(12):
        keys = keys_of(f"k{number}", 100)
        await append(store, keys[:50])
        found_there.append(await steps(store._writer, partial(append, store, keys[50:])))
    await append(store, keys_of("k0", 100))
    found_elsewhere = await steps(store._writer, partial(append, store, keys_of("k5", 50)))

    assert max(found_there) < 1.1 * min(found_there)
    assert found_elsewhere > 3 * min(found_there)


async def test_keys_are_looked_for_in_the_newest_run_first_and_in_what_the_expected_one_became(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink_ledger(monkeypatch, memtable=100, fanout=4)
    numbers = itertools.count()

    async def add_runs(store: Store, count: int) -> None:
        for _ in range(count):
            await append(store, keys_of(f"k{next(numbers)}", 100))
            await flush(store)
        await finish_work(store)

    async def found(store: Store, number: int) -> int:
        return await steps(store._writer, partial(append, store, keys_of(f"k{number}", 50)))

    store = await open_store()
    await add_runs(store, 3)
    await found(store, 0)
    await add_runs(store, 1 + 2)
    assert [run.keys for run in store.ledger._complete()] == [400, 100, 100]
    in_merged = await found(store, 0)
    store = await open_store()
    in_oldest = await found(store, 0)
    store = await open_store()
    in_newest = await found(store, 5)

    assert in_newest < 0.9 * in_oldest
    assert in_merged == pytest.approx(in_newest, rel=0.05)


async def test_what_is_sent_again_makes_no_runs(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memtable becomes a run by the bytes that a start would have to read again, and those are of new events only."""
    shrink_ledger(monkeypatch, memtable=1000)
    monkeypatch.setattr(memtable_module, "MEMTABLE_EVENT_BYTES", 50_000)
    store = await open_store()
    await append(store, keys_of("k", 20), padding=1000)
    for _ in range(50):
        await append(store, keys_of("k", 20), padding=1000)
        await flush(store)
    assert store.ledger.run_count == 0
    await append(store, keys_of("more", 40), padding=1000)
    await flush(store)

    assert store.ledger.run_count == 1
    assert await append(store, keys_of("k", 20)) == (1061, {i: i + 1 for i in range(20)})


async def test_a_run_that_was_merged_is_dropped_without_being_written(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some builds of SQLite fill with zeros what they free, through the WAL: as much again as the merge has written."""
    shrink_ledger(monkeypatch, memtable=20_000, fanout=2, least=20_000, most=20_000)
    store = await open_store()
    for number in range(2):
        await append(store, keys_of(f"k{number}", 20_000))
        await flush(store)
    while store.ledger._merges:
        await store.work(quiet=True)
    await store.checkpoint(truncate=True)
    assert len(store.ledger._garbage) == 2
    await finish_work(store)

    assert store.wal_bytes < 0.1 * 20_000 * ledger.KEY_ROW_BYTES
    await store.close()
    check_database(store.path)


async def test_a_run_that_was_unfinished_when_the_server_ended_is_made_again(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink_ledger(monkeypatch, memtable=100, least=10)
    store = await open_store()
    keys = keys_of("k", 130)
    await append(store, keys[:100])
    await store.work(quiet=False)
    await append(store, keys[100:])
    ((begun,),) = await store._write("SELECT count(*) FROM keys_1")
    assert 0 < begun < 100
    store = await open_store()
    assert store.ledger.run_count == 0
    assert await append(store, keys) == (131, {i: i + 1 for i in range(130)})
    await flush(store)
    await finish_work(store)

    assert [(run.id, run.keys) for run in store.ledger._runs] == [(2, 130)]
    assert await store._write("SELECT name FROM sqlite_schema WHERE name LIKE 'keys!_%' ESCAPE '!'") == [("keys_2",)]
    assert await append(store, keys) == (261, {i: i + 1 for i in range(130)})
    await store.close()
    check_database(store.path)


async def test_more_topics_than_are_remembered_are_counted_right(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store()
    counted = []
    for first, last in ((0, 9000), (0, 9000), (5000, 14_000), (0, 100), (14_000, 14_001), (0, 14_001)):
        await append(store, [(f"topic {i}", f"e{first}-{last}-{i % 2}") for i in range(first, last)])
        counted.append(store.topics_total)
        assert len(store._seen_topics) <= max(SEEN_TOPICS, last - first)
    await store.close()
    check_database(store.path)

    assert counted == [9000, 9000, 14_000, 14_000, 14_001, 14_001]


# With KILL_SEED it kills itself at a random step of SQLite's virtual machine, somewhere in the ledger's work.
_KILLS_ITSELF: Final = """
import os, random, signal

async def work(self, quiet, work=ledger.Ledger.work):
    global calls
    calls -= 1
    if calls == 0:
        await self._writer.set_progress_handler(step, 1)
    await work(self, quiet)

def step():
    global steps
    steps -= 1
    if steps == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0

if "KILL_SEED" in os.environ:
    moments = random.Random(int(os.environ["KILL_SEED"]))
    calls = moments.randrange(1, 80)
    steps = int(10 ** moments.uniform(0, 4))
    ledger.Ledger.work = work
"""


@pytest.mark.parametrize("at_work", [False, True], ids=["at any moment", "at work"])
def test_kill_9_during_flushes_and_merges_loses_and_doubles_nothing(
    start_server: StartServer, at_work: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    server = start_server(program=changed(SMALL_LEDGER + _KILLS_ITSELF))
    sent = Sent()
    for number in range(8):
        senders = [Sender(sent, server.port, f"r{number}c{i}", in_flight=100) for i in range(3)]
        if at_work and number:
            assert server.wait() == -signal.SIGKILL
        else:
            wait_until(lambda senders=senders: all(sender.acks for sender in senders))  # type: ignore[misc]
            time.sleep(moments.uniform(0.005, 0.2))  # the moment of the fault, not a wait for anything
            server.kill()
        for sender in senders:
            sender.join(30)
        if at_work and number < 7:
            monkeypatch.setenv("KILL_SEED", str(moments.getrandbits(32)))
        else:
            monkeypatch.delenv("KILL_SEED", raising=False)
        server.restart()
    sent.verify(server)
    stored = {name: one["seq"] for name, one in server.stored("t").items()}
    lines = list(sent.sent.values())
    moments.shuffle(lines)
    for start in range(0, len(lines), 1000):
        for reply in exchange(server.port, b"".join(lines[start : start + 1000])):
            assert (reply["status"], reply["seq"]) == ("duplicate", stored[reply["event_id"]])
    assert server.stop() == 0
    assert "Traceback" not in server.log
    check_database(server.db)

    with contextlib.closing(sqlite3.connect(server.db)) as database:
        assert database.execute("SELECT max(level) > 2 FROM runs").fetchone() == (1,), "merges were among it"
    print(f"{len(lines)} events")
