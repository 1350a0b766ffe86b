"""The upkeep that the SQLite engine does in parallel with batches: checkpoints, and what happens when they fail."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from aggregator.event import Event, Events
from aggregator.server import consumer as consumer_module
from aggregator.server.consumer import Consumer
from aggregator.server.health import Health
from aggregator.server.intake import Intake, Outcome, Submission
from aggregator.server.stats import Stats
from aggregator.storage.engine import Commit, StorageBusy, StorageFailed, StorageFull
from aggregator.storage.sqlite.store import Store
from tests.harness import storage
from tests.harness.database_check import check_database
from tests.harness.other_program import holding_a_snapshot
from tests.harness.polling import until

NO_LIMIT = 1 << 30
KIB = 1024

Open = Callable[[int], Awaitable[Store]]


@pytest.fixture
async def open_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Open a store with this WAL limit; it does not wait for locks, and is checkpointed after 100 KiB."""
    storage.never_wait(monkeypatch.setattr)
    storage.checkpoint_after(monkeypatch.setattr, 100 * KIB)
    stores: list[Store] = []

    async def open_(wal_limit_bytes: int = NO_LIMIT) -> Store:
        stores.append(await Store.open(tmp_path / "events.db", wal_limit_bytes))
        return stores[-1]

    yield open_
    for store in stores:
        await store.close()
        check_database(store.database.path)


@pytest.fixture
async def store(open_store: Open) -> Store:
    return await open_store(NO_LIMIT)


async def append(store: Store, name: str, size_bytes: int) -> Commit:
    """Store one event of this size."""
    batch = store.new_batch()
    batch.add(made(name, size_bytes))
    return await store.append(batch)


def made(name: str, size_bytes: int) -> Events:
    head = b'{"event_id":"%s","x":"' % name.encode()
    return Events.of([Event.of("t", name, head + b"x" * (size_bytes - len(head) - 2) + b'"}')])


def trouble(store: Store) -> str | None:
    return store.troubles()["checkpoint"]


# --- when the WAL is copied


async def test_a_large_wal_is_checkpointed_beside_the_batches(store: Store) -> None:
    await append(store, "a", 101 * KIB)
    before = store.wal.last.ended
    assert store.upkeep_due
    await store.upkeep(quiet=False)

    assert not store.upkeep_due
    assert store.wal.last.ended > before
    assert store.database.db_bytes > 101 * KIB


async def test_many_small_commits_make_a_large_wal_too(open_store: Open) -> None:
    """Each commit rewrites the same few pages: little to copy, and a WAL that grows."""
    store = await open_store(4 * 200 * KIB)
    count = 0
    while not store.upkeep_due:
        await append(store, f"e{count}", 100)
        count += 1
    assert 5 < count < 30
    await store.upkeep(quiet=False)

    assert not store.upkeep_due


async def test_a_small_wal_is_checkpointed_only_in_quiet_times(store: Store) -> None:
    await append(store, "a", 10 * KIB)
    before = store.wal.last.ended
    assert not store.upkeep_due
    await store.upkeep(quiet=False)
    assert store.wal.last.ended == before
    assert store.upkeep_left
    while store.upkeep_left:
        await store.upkeep(quiet=True)

    assert store.wal.last.ended > before
    assert store.database.db_bytes > 10 * KIB


async def test_nothing_is_left_of_an_empty_store(store: Store) -> None:
    while store.upkeep_left:
        await store.upkeep(quiet=True)

    assert not store.upkeep_due


async def test_a_wal_file_that_readers_made_large_is_cut(open_store: Open) -> None:
    store = await open_store(400 * KIB)
    with holding_a_snapshot(store.database.path):
        await append(store, "a", 150 * KIB)
    assert store.database.wal_bytes > 100 * KIB
    await store.upkeep(quiet=False)

    assert store.database.wal_bytes == 0


# --- when that fails


async def test_a_checkpoint_that_a_reader_holds_up_is_named_once_and_tried_again(
    open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = await open_store(400 * KIB)
    with holding_a_snapshot(store.database.path):
        await append(store, "a", 150 * KIB)
        for _ in range(3):
            assert store.upkeep_due
            await store.upkeep(quiet=False)
        assert trouble(store) == "another program is reading"
    assert store.upkeep_left
    await store.upkeep(quiet=True)

    assert trouble(store) is None
    assert [record.getMessage() for record in caplog.records] == [
        "checkpoint: another program is reading",
        "checkpoint: complete again",
    ]


async def test_after_a_failure_there_is_a_pause_before_the_next_attempt(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.pause_after_failures(monkeypatch.setattr, 3600.0)
    store = await open_store(400 * KIB)
    with holding_a_snapshot(store.database.path):
        await append(store, "a", 150 * KIB)
        await store.upkeep(quiet=False)
        failed = store.wal.last.ended
        assert trouble(store)
        assert not store.upkeep_due
        await store.upkeep(quiet=False)
        await append(store, "b", KIB)

        assert store.wal.last.ended == failed


async def open_with_work_and_no_space(open_: Open, patch: pytest.MonkeyPatch) -> Store:
    """A store whose memtable should become a run of several pages, for which there is no space."""
    storage.shrink_ledger(patch.setattr, keys=200, least=100, most=200)
    store = await open_(NO_LIMIT)
    batch = store.new_batch()
    for number in range(200):
        batch.add(made(f"e{number}", 100))
    await store.append(batch)
    await storage.limit_size(store, 1)
    with pytest.raises(StorageFull):
        await storage.work(store, quiet=False)
    return store


async def test_work_that_finds_no_space_is_done_when_there_is_some(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.pause_after_failures(monkeypatch.setattr, 3600.0)
    store = await open_with_work_and_no_space(open_store, monkeypatch)
    assert store.upkeep_due
    await store.upkeep(quiet=False)
    assert not store.upkeep_due, "it has to wait"
    assert store.upkeep_left
    await storage.limit_size(store, storage.NO_LIMIT)
    storage.pause_after_failures(monkeypatch.setattr, 0.0)
    await storage.finish_work(store)

    assert storage.runs(store) == [(1, 200)]


async def test_work_that_fails_in_any_other_way_fails_the_store(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.shrink_ledger(monkeypatch.setattr)
    store = await open_store(NO_LIMIT)
    for number in range(8):
        await append(store, f"e{number}", 100)
    error = await storage.interrupted(store, 5, lambda: store.upkeep(quiet=True))

    assert isinstance(error, StorageFailed)
    await store.upkeep(quiet=True)


# --- above the limit


async def test_above_its_limit_nothing_is_appended_until_a_checkpoint_succeeds(open_store: Open) -> None:
    store = await open_store(100 * KIB)
    await append(store, "before", KIB)
    with holding_a_snapshot(store.database.path):
        await append(store, "a", 150 * KIB)
        for _ in range(2):
            with pytest.raises(StorageBusy, match="the WAL has reached its limit: another program is reading"):
                await append(store, "b", KIB)
        assert await store.event("t", "b") is None
    commit = await append(store, "b", KIB)

    stored = await store.event("t", "b")
    assert stored
    assert stored.seq == commit.seq(0)
    assert trouble(store) is None
    assert store.database.wal_bytes < 100 * KIB


async def test_the_size_of_the_file_counts_too(open_store: Open) -> None:
    """All of it has been copied, but a reader that came later keeps it from being reused."""
    store = await open_store(100 * KIB)
    await append(store, "a", 150 * KIB)
    with holding_a_snapshot(store.database.path):
        with pytest.raises(StorageBusy):
            await append(store, "b", KIB)
        assert store.database.db_bytes > 150 * KIB
        with pytest.raises(StorageBusy):
            await append(store, "b", KIB)
    await append(store, "b", KIB)


async def test_above_the_limit_a_checkpoint_that_was_never_tried_is_tried(open_store: Open) -> None:
    store = await open_store(100 * KIB)
    await append(store, "a", 150 * KIB)
    await append(store, "b", 150 * KIB)

    assert trouble(store) is None


# --- with the consumer


class Bench:
    """A consumer over this store, and what it has told."""

    def __init__(self, store: Store) -> None:
        self.health = Health()
        self.told: dict[str, list[Outcome]] = {}
        self.intake = Intake(max_events=1000, max_bytes=10**7)
        self.task = asyncio.create_task(Consumer(self.intake, store, Stats(), self.health, 100, lambda *_: None).run())

    def put(self, name: str, size_bytes: int) -> None:
        self.intake.put(Submission(made(name, size_bytes), self.told.setdefault(name, []).append))

    async def until_acked(self, name: str) -> None:
        await until(lambda: self.told[name])
        (outcome,) = self.told[name]
        assert isinstance(outcome, Commit)


@contextlib.asynccontextmanager
async def consumer(store: Store) -> AsyncIterator[Bench]:
    bench = Bench(store)
    yield bench
    bench.intake.close()
    await bench.task


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet times begin soon, and failed work is retried soon, but not at once."""
    monkeypatch.setattr(consumer_module, "RETRY_S", 0.01)
    monkeypatch.setattr(consumer_module, "IDLE_S", 0.01)


@pytest.mark.usefixtures("short_pauses")
async def test_in_quiet_times_everything_is_copied_and_then_nothing_is_done(store: Store) -> None:
    async with consumer(store) as bench:
        bench.put("a", 10 * KIB)
        await bench.until_acked("a")
        await until(lambda: not store.upkeep_left)
        last = store.wal.last.ended
        await asyncio.sleep(0.1)  # ten quiet times

        assert store.wal.last.ended == last
        assert store.database.db_bytes > 10 * KIB


@pytest.mark.usefixtures("short_pauses")
async def test_a_checkpoint_that_failed_is_tried_again_though_nothing_arrives(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.pause_after_failures(monkeypatch.setattr, 0.05)
    store = await open_store(400 * KIB)
    async with consumer(store) as bench:
        with holding_a_snapshot(store.database.path):
            bench.put("a", 150 * KIB)
            await bench.until_acked("a")
            await until(lambda: trouble(store))
        await until(lambda: trouble(store) is None)


@pytest.mark.usefixtures("short_pauses")
async def test_work_that_found_no_space_is_tried_again_though_nothing_arrives(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.pause_after_failures(monkeypatch.setattr, 0.05)
    store = await open_with_work_and_no_space(open_store, monkeypatch)
    await store.upkeep(quiet=True)
    async with consumer(store):
        await storage.limit_size(store, storage.NO_LIMIT)
        await until(lambda: storage.runs(store) and not store.upkeep_left)


@pytest.mark.usefixtures("short_pauses")
async def test_above_the_limit_nobody_is_told_anything_until_a_checkpoint_succeeds(open_store: Open) -> None:
    store = await open_store(100 * KIB)
    async with consumer(store) as bench:
        with holding_a_snapshot(store.database.path):
            bench.put("a", 150 * KIB)
            await bench.until_acked("a")
            bench.put("b", KIB)
            await until(lambda: bench.health.trouble)
            assert bench.health.trouble == "the WAL has reached its limit: another program is reading"
            bench.put("c", KIB)
            await asyncio.sleep(0.05)
            assert bench.told["b"] == bench.told["c"] == []
        await bench.until_acked("b")
        await bench.until_acked("c")

        assert bench.health.trouble is None
