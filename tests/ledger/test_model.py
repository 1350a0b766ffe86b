"""A store against a plain dict: appends, upkeep, faults and restarts in any order; every answer is compared."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from aggregator.event import Event, Events
from aggregator.storage.engine import Commit, StorageBusy, StorageFull, StoredEvent
from aggregator.storage.sqlite.batch import Batch
from aggregator.storage.sqlite.store import Store
from tests.harness import storage
from tests.harness.database_check import check_database
from tests.harness.keys import Key, Model, event_of
from tests.harness.other_program import holding_the_lock
from tests.harness.pages import page

HEADS: Final = {
    "spread": (),
    "all the same": (b"\0\0\0\0",),
    "all the last": (b"\xff\xff\xff\xff",),
    "few, next to each other and at both ends": (b"\0\0\0\0", b"\0\0\0\1", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff"),
}
"""The first bytes that the digests of keys may have. The filter, and the slices of a merge, depend on these 32 bits."""

TOPICS: Final = ("a", "b", "rare")
some_keys = st.tuples(
    st.sampled_from(["a"] * 6 + ["b"] * 6 + ["rare"]), st.integers(0, 60).map(lambda number: f"e{number}")
)
some_batches = st.lists(some_keys, min_size=1, max_size=10)


class StoreMachine(RuleBasedStateMachine):
    """Whatever may happen to a store; it must answer as the model does."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.put = self.patch.setattr
        storage.never_wait(self.put)
        storage.shrink_blocks(self.put, 4, 3000)
        storage.remember_topics(self.put, 2)
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
        storage.shrink_ledger(self.put, memtable, fanout, least, most)
        storage.set_postings_due(self.put, postings_due)
        storage.shrink_filter(self.put, filter_bits)
        storage.crowd_digests(self.put, HEADS[heads])
        self.store = self.runner.run(storage.open_store(self.folder / "events.db"))

    def filled(self, keys: list[Key], padding: int = 0) -> tuple[Batch, list[Event]]:
        """A batch, filled in two parts, and its events."""
        events = []
        for key in keys:
            self.number += 1
            events.append(event_of(key, self.number, padding))
        batch = self.store.new_batch()
        middle = len(events) // 2
        for part in (events[:middle], events[middle:]):
            batch.add(Events.of(part))
        return batch, events

    def append(self, batch: Batch, events: list[Event]) -> None:
        self.compare_commit(self.runner.run(self.store.append(batch)), events)

    def compare_commit(self, commit: Commit, events: list[Event]) -> None:
        assert (commit.seqs[0], commit.duplicates) == self.model.append(events)

    def upkeep(self, quiet: bool) -> None:
        self.runner.run(self.store.upkeep(quiet))

    def limit_size(self, pages: int) -> None:
        self.runner.run(storage.limit_size(self.store, pages))

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
            self.upkeep(quiet)
        self.append(*two)

    @rule(
        first=some_batches,
        second=some_batches,
        fault=st.sampled_from([None, "full", "busy", "busy, and not tried again"]),
        quiet=st.booleans(),
    )
    def a_batch_that_is_prepared_while_the_one_before_commits_or_fails(
        self, first: list[Key], second: list[Key], fault: str | None, quiet: bool
    ) -> None:
        one, two = self.filled(first, 2000), self.filled(second)

        async def append_prepare_and_keep_up() -> tuple[Commit | BaseException, object, object]:
            return await asyncio.gather(
                self.store.append(one[0]),
                self.store.prepare(two[0]),
                self.store.upkeep(quiet),
                return_exceptions=True,
            )

        if fault == "full":
            self.limit_size(1)
        busy = fault and fault != "full"
        with holding_the_lock(self.store.database.path) if busy else contextlib.nullcontext():
            appended, *_ = self.runner.run(append_prepare_and_keep_up())
        self.limit_size(storage.NO_LIMIT)
        if not isinstance(appended, BaseException):
            self.compare_commit(appended, one[1])
        elif fault == "busy":
            self.append(*one)
        else:
            assert fault, appended
        self.append(*two)

    @rule(count=st.integers(1, 12), topic=st.sampled_from(TOPICS), quiet=st.booleans())
    def new_keys_with_upkeep_after_each_batch(self, count: int, topic: str, quiet: bool) -> None:
        for _ in range(count):
            self.append(*self.filled([(topic, f"new-{self.number}-{i}") for i in range(2)]))
            self.upkeep(quiet)

    @rule(start=st.integers(0, 1000), count=st.integers(1, 20))
    def all_again(self, start: int, count: int) -> None:
        keys = list(self.model.seqs)
        if keys:
            start %= len(keys)
            self.append(*self.filled(keys[start : start + count]))

    @rule(quiet=st.booleans(), times=st.integers(1, 12))
    def upkeep_several_times(self, quiet: bool, times: int) -> None:
        for _ in range(times):
            self.upkeep(quiet)

    @rule()
    def checkpoint(self) -> None:
        self.runner.run(self.store.wal.checkpoint())
        assert self.store.wal.last.error is None

    @rule()
    def close_and_reopen(self) -> None:
        self.runner.run(self.store.close())
        self.store = self.runner.run(storage.open_store(self.store.database.path))

    @rule()
    def lose_power(self) -> None:
        """Continue with copies of the files as they are now, including the WAL."""
        old = self.store.database.path.parent
        new = Path(tempfile.mkdtemp(dir=self.folder))
        for name in ("events.db", "events.db-wal"):
            if (old / name).exists():
                shutil.copy(old / name, new / name)
        self.runner.run(self.store.close())
        self.store = self.runner.run(storage.open_store(new / "events.db"))

    @rule(keys=some_batches, quiet=st.booleans(), padding=st.sampled_from([0, 2000]))
    def a_full_disk(self, keys: list[Key], quiet: bool, padding: int) -> None:
        self.limit_size(1)  # SQLite does not go below the present size
        attempts = [self.filled(keys, padding) for _ in range(2)]
        for batch, events in attempts:
            try:
                commit = self.runner.run(self.store.append(batch))
            except StorageFull:
                pass
            else:
                self.compare_commit(commit, events)
            self.upkeep(quiet)
        self.limit_size(storage.NO_LIMIT)

    @rule(keys=some_batches, quiet=st.booleans(), asked_for=some_keys)
    def a_foreign_writer(self, keys: list[Key], quiet: bool, asked_for: Key) -> None:
        batch, events = self.filled(keys)
        with holding_the_lock(self.store.database.path):
            with pytest.raises(StorageBusy):
                self.runner.run(self.store.append(batch))
            self.upkeep(quiet)
            self.one_event(asked_for)
        self.append(batch, events)

    @rule(key=some_keys)
    def one_event(self, key: Key) -> None:
        self.compare_event(key, self.runner.run(self.store.event(*key)))

    @rule(keys=st.lists(some_keys, min_size=1, max_size=4), quiet=st.booleans())
    def events_that_are_asked_for_during_upkeep(self, keys: list[Key], quiet: bool) -> None:
        async def ask() -> list[StoredEvent | None]:
            working = asyncio.create_task(self.store.upkeep(quiet))
            found = await asyncio.gather(*(self.store.event(*key) for key in keys))
            await working
            return found

        for key, found in zip(keys, self.runner.run(ask()), strict=True):
            self.compare_event(key, found)

    def compare_event(self, key: Key, found: StoredEvent | None) -> None:
        seq = self.model.seqs.get(key)
        expected = None if seq is None else (seq, dict(self.model.stored)[seq].json)
        assert (None if found is None else (found.seq, found.json)) == expected

    @rule(topic=st.sampled_from(TOPICS), limit=st.integers(1, 9), after=st.none() | st.integers(0, 300))
    def a_page(self, topic: str, limit: int, after: int | None) -> None:
        found = self.runner.run(page(self.store, topic, limit, after))
        self.compare_page(found, topic, limit, after)

    def compare_page(self, found: list[StoredEvent], topic: str, limit: int, after: int | None) -> None:
        of_topic = self.model.of_topic(topic)
        expected = of_topic[::-1] if after is None else [one for one in of_topic if one[0] > after]
        assert [(one.seq, one.json) for one in found] == expected[:limit]

    @rule(pages=st.lists(st.tuples(st.sampled_from(TOPICS), st.none() | st.integers(0, 300)), min_size=1, max_size=4))
    def pages_that_are_asked_for_during_upkeep(self, pages: list[tuple[str, int | None]]) -> None:
        async def ask() -> list[list[StoredEvent]]:
            working = asyncio.create_task(self.store.upkeep(quiet=False))
            found = await asyncio.gather(*(page(self.store, topic, 9, after) for topic, after in pages))
            await working
            return found

        for (topic, after), found in zip(pages, self.runner.run(ask()), strict=True):
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
            self.runner.run(storage.finish_work(self.store))
            write = self.store.database.write
            tables = self.runner.run(write("SELECT name FROM sqlite_schema WHERE name GLOB 'keys_*'"))
            runs = self.runner.run(write("SELECT 'keys_' || id FROM runs"))
            assert sorted(tables) == sorted(runs), "nothing is left of the runs that were merged"
            self.runner.run(self.store.close())
            check_database(self.store.database.path)
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
