"""The consumer over a store that fails at will, and the queue before it: who is told what, exactly once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from aggregator import consumer as consumer_module
from aggregator.batch import Batch
from aggregator.consumer import Consumer
from aggregator.event import Event, Events
from aggregator.intake import Commit, Failure, Intake, Outcome, Submission
from aggregator.key_filter import KeyFilter
from aggregator.stats import Stats
from aggregator.store import (
    Checkpoint,
    StorageBusy,
    StorageFailed,
    StorageFull,
)

WAL_LIMIT_BYTES = 1 << 30


def made(*ids: str, size_bytes: int) -> Events:
    """Events of that size each."""
    return Events.of(Event.of("t", one, b"x" * size_bytes) for one in ids)


class ScriptedStore:
    """Does as the script says, call by call: None stores, an exception is raised; then stores for ever."""

    def __init__(self, *script: BaseException | None) -> None:
        self.script = list(script)
        self.batches: list[list[str]] = []
        self.decided: list[list[str]] = []
        self.seqs: dict[str, int] = {}
        self.next_seq = 1
        self.backlog_bytes = 0
        self.wal_bytes = 0
        self.checkpoint_due = False
        self.work_due = True
        self.checkpoints = 0
        self.probes = 0
        self.works: list[bool] = []
        self.work_left = False
        self.last_checkpoint = Checkpoint(time.monotonic(), None)
        self.may_commit = asyncio.Event()
        self.may_commit.set()

    def new_batch(self) -> Batch:
        return Batch(KeyFilter())

    async def decide(self, batch: Batch) -> None:
        self.decided.append(batch.events.event_ids)
        self.fail_as_scripted()

    async def append(self, batch: Batch) -> int:
        assert isinstance(batch, Batch)
        await self.may_commit.wait()
        self.fail_as_scripted()
        first = self.next_seq
        self.batches.append(batch.events.event_ids)
        batch.duplicates = duplicates = {}
        for position, event_id in enumerate(batch.events.event_ids):
            seq = self.seqs.setdefault(event_id, first + position)
            if seq != first + position:
                duplicates[position] = seq
        self.next_seq += len(batch)
        return first

    async def work(self, quiet: bool) -> None:
        self.works.append(quiet)
        if quiet:
            self.work_left = False

    async def checkpoint(self, truncate: bool) -> None:
        self.checkpoints += 1
        self.checkpoint_due = False
        self.backlog_bytes = 0

    async def probe(self) -> None:
        self.probes += 1
        self.fail_as_scripted()

    def fail_as_scripted(self) -> None:
        step = self.script.pop(0) if self.script else None
        if step is not None:
            raise step


class Bench:
    """A consumer at work, and what it has told to each submission."""

    def __init__(self, store: ScriptedStore, max_batch: int = 100, max_bytes: int = 10**6) -> None:
        self.store = store
        self.stats = Stats()
        self.intake = Intake(max_events=1000, max_bytes=max_bytes)
        self.consumer = Consumer(self.intake, store, self.stats, max_batch, WAL_LIMIT_BYTES)
        self.told: dict[str, list[Outcome]] = {}
        self.task = asyncio.create_task(self.consumer.run())

    def put(self, *ids: str, size_bytes: int = 2) -> None:
        name = ids[0]
        outcomes = self.told.setdefault(name, [])
        self.intake.put(Submission(made(*ids, size_bytes=size_bytes), outcomes.append))

    async def finish(self) -> None:
        self.intake.close()
        await self.task

    async def until_told(self, *names: str) -> None:
        async with asyncio.timeout(10):
            while not all(self.told[name] for name in names):
                await asyncio.sleep(0)


@pytest.fixture
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    made = Bench(ScriptedStore(*getattr(request, "param", ())))
    yield made
    made.task.cancel()
    await asyncio.gather(made.task, return_exceptions=True)


async def test_what_is_queued_is_one_batch_and_what_arrives_meanwhile_the_next(bench: Bench) -> None:
    bench.store.may_commit.clear()
    bench.put("a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    bench.put("b", "c")
    bench.put("d")
    bench.store.may_commit.set()
    await bench.finish()

    assert bench.store.batches == [["a"], ["b", "c", "d"]]


async def test_each_submission_is_told_its_own_part_of_the_commit(bench: Bench) -> None:
    bench.put("a", "b")
    bench.put("b", "c")
    await bench.finish()

    assert bench.told == {"a": [Commit(1, {2: 2}, 0)], "b": [Commit(3, {2: 2}, 2)]}
    assert (bench.stats.stored, bench.stats.duplicate) == (3, 1)


async def test_a_batch_is_no_larger_than_allowed_and_no_submission_is_split(bench: Bench) -> None:
    for name in "abc":
        bench.put(*(f"{name}{i}" for i in range(60)))
    bench.put(*(f"d{i}" for i in range(150)))
    await bench.finish()

    assert [len(batch) for batch in bench.store.batches] == [60, 60, 60, 150]


@pytest.mark.parametrize("bench", [[StorageFull("full")]], indirect=True)
async def test_a_full_disk_fails_its_batch_alone(bench: Bench) -> None:
    bench.put("a")
    await bench.until_told("a")
    assert bench.stats.trouble == "full"
    bench.put("b")
    await bench.finish()

    assert bench.told == {"a": [Failure("storage_full", "full")], "b": [Commit(1, {}, 0)]}
    assert bench.stats.errors == 1
    assert bench.stats.failure is None


@pytest.mark.parametrize("bench", [[StorageFull("full"), StorageFull("full"), None]], indirect=True)
async def test_after_a_full_disk_health_recovers_without_traffic(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "RETRY_S", 0.001)
    bench.put("a")
    async with asyncio.timeout(10):
        while bench.store.probes < 2 or bench.stats.trouble:
            await asyncio.sleep(0)

    assert bench.stats.trouble is None


@pytest.mark.parametrize("bench", [[StorageBusy("locked")] * 3], indirect=True)
async def test_a_busy_database_is_tried_again_and_nobody_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "RETRY_S", 0.001)
    bench.put("a")
    await bench.finish()

    assert bench.told == {"a": [Commit(1, {}, 0)]}
    assert bench.stats.errors == 0


@pytest.mark.parametrize("bench", [[None, StorageFailed("EIO")], [None, RuntimeError("a defect")]], indirect=True)
async def test_a_broken_store_ends_the_consumer_and_no_ack_follows(bench: Bench) -> None:
    bench.put("a")
    await bench.until_told("a")
    bench.store.may_commit.clear()
    bench.put("b")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    bench.put("c")
    bench.store.may_commit.set()
    with pytest.raises((StorageFailed, RuntimeError)):
        await bench.task

    assert bench.told["a"] == [Commit(1, {}, 0)]
    assert [[outcome.code for outcome in bench.told[name] if isinstance(outcome, Failure)] for name in "bc"] == [
        ["storage"],
        ["storage"],
    ]
    assert bench.store.batches == [["a"]]
    assert bench.stats.failure in ("EIO", "a defect")
    assert bench.stats.errors == 2


@pytest.mark.parametrize("failing_call", range(6))
@pytest.mark.parametrize("error", [StorageFull, StorageBusy, StorageFailed])
async def test_whichever_call_fails_nothing_is_acked_that_is_not_stored(
    failing_call: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "RETRY_S", 0.001)
    bench = Bench(ScriptedStore(*[None] * failing_call, error("injected")), max_batch=2)
    names = [f"n{i}" for i in range(8)]
    for name in names:
        bench.put(name, name + "x")
    await asyncio.gather(bench.finish(), return_exceptions=True)

    stored = {name for batch in bench.store.batches for name in batch}
    for name in names:
        (outcome,) = bench.told[name]  # exactly once
        assert isinstance(outcome, Commit) == (name in stored)


async def test_a_full_batch_is_decided_while_the_one_before_commits() -> None:
    bench = Bench(ScriptedStore(), max_batch=2)
    bench.store.may_commit.clear()
    for name in "abc":
        bench.put(name, name + "x")
    async with asyncio.timeout(10):
        while not bench.store.decided:
            await asyncio.sleep(0)
    assert bench.store.batches == []
    bench.store.may_commit.set()
    await bench.finish()

    assert bench.store.decided == [["b", "bx"]]
    assert bench.told == {name: [Commit(seq, {}, 0)] for name, seq in (("a", 1), ("b", 3), ("c", 5))}


async def test_what_fails_beside_the_commits_ends_the_consumer_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(quiet: bool) -> None:
        raise StorageFailed("EIO")

    monkeypatch.setattr(bench.store, "work", work)
    bench.put("a")
    with pytest.raises(StorageFailed):
        async with asyncio.timeout(10):
            await bench.task

    assert bench.told == {"a": [Commit(1, {}, 0)]}
    assert bench.stats.failure == "EIO"


async def test_a_large_wal_is_checkpointed_beside_a_batch(bench: Bench) -> None:
    bench.store.checkpoint_due = True
    bench.put("a")
    await bench.finish()

    assert bench.store.checkpoints == 1


async def test_a_small_wal_is_checkpointed_only_in_quiet_times(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "IDLE_S", 0.001)
    bench.store.backlog_bytes = 1
    bench.put("a")
    await bench.until_told("a")
    async with asyncio.timeout(10):
        while not bench.store.checkpoints:
            await asyncio.sleep(0)

    assert bench.store.checkpoints == 1


async def test_a_failed_checkpoint_is_tried_again_in_quiet_times(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "IDLE_S", 0.001)
    bench.store.last_checkpoint = Checkpoint(time.monotonic(), "another program is reading")
    bench.put("a")
    async with asyncio.timeout(10):
        while not bench.store.checkpoints:
            await asyncio.sleep(0)


async def test_above_its_limit_the_wal_stops_the_intake_until_a_checkpoint_succeeds(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "RETRY_S", 0.001)
    store, attempts = bench.store, 0

    async def checkpoint(truncate: bool) -> None:
        nonlocal attempts
        attempts += 1
        store.last_checkpoint = Checkpoint(time.monotonic(), "blocked" if attempts < 3 else None)
        if attempts == 3:
            store.backlog_bytes = 0

    monkeypatch.setattr(store, "checkpoint", checkpoint)
    store.backlog_bytes = WAL_LIMIT_BYTES + 1
    bench.put("a")
    await bench.until_told("a")
    bench.put("b")
    await bench.until_told("b")

    assert attempts == 3
    assert store.batches == [["a"], ["b"]]


async def test_the_intake_wakes_those_who_wait_at_half_and_only_while_there_is_room() -> None:
    intake = Intake(max_events=10, max_bytes=1000)
    woken: list[int] = []

    def put(count: int) -> None:
        intake.put(Submission(made(*["e"] * count, size_bytes=1), lambda _: None))

    def wake(number: int) -> None:
        woken.append(number)
        put(10)

    async def take() -> None:
        submission = await intake.get()
        assert submission
        intake.took([submission])

    put(6)
    put(6)
    assert intake.full
    for number in range(3):
        intake.when_room(lambda number=number: wake(number))  # type: ignore[misc]

    await take()  # 6 left: above the low water mark
    assert woken == []
    await take()  # 0 left: the first one fills it again
    assert woken == [0]
    await take()
    assert woken == [0, 1]


async def test_a_batch_is_bounded_by_bytes_too() -> None:
    bench = Bench(ScriptedStore(), max_bytes=100)
    for name in "abcde":
        bench.put(name, size_bytes=60)
    await bench.finish()

    assert bench.store.batches == [["a"], ["b"], ["c"], ["d"], ["e"]]


async def test_the_intake_is_full_by_bytes_too() -> None:
    intake = Intake(max_events=1000, max_bytes=100)
    intake.put(Submission(made("e", size_bytes=100), lambda _: None))

    assert intake.full


async def test_a_closed_intake_gives_out_what_came_after_its_end_too() -> None:
    intake = Intake(max_events=10, max_bytes=100)
    first, late = (Submission(made(name, size_bytes=1), lambda _: None) for name in "ab")
    intake.put(first)
    intake.close()
    intake.put(late)

    assert [await intake.get() for _ in range(4)] == [first, late, None, None]
