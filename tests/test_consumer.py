"""The consumer over engines that fail on demand: each submission is told exactly once, and each ack is true."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.event import Event, Events
from aggregator.server import consumer as consumer_module
from aggregator.server.consumer import Consumer
from aggregator.server.health import Health
from aggregator.server.intake import Intake, Outcome, Submission
from aggregator.server.stats import Stats
from aggregator.storage.engine import AnyEngine, Commit, Position, StorageBusy, StorageError, StorageFailed, StorageFull
from aggregator.wire import Code, Failure
from tests.harness.dict_engine import DictEngine
from tests.harness.engines import ENGINES, opened
from tests.harness.polling import DEADLINE_S, until

FULL, BUSY, FAILED = StorageFull("full"), StorageBusy("locked"), StorageFailed("EIO")


class Scripted:
    """An engine whose calls fail one by one as a script says, and whose batches are held up where a test wants it.

    The script covers ``append``, ``prepare`` and ``probe``: for None the engine does its work, an exception is raised.
    """

    def __init__(self, engine: AnyEngine, *script: BaseException | None) -> None:
        self.engine = engine
        self.script = list(script)
        self.before: dict[str, asyncio.Future[None]] = {}  # by event id: what its batch waits for before it is stored
        self.after: dict[str, asyncio.Future[None]] = {}  # the same, after it is stored
        self.handed_over: list[list[str]] = []  # the ids of each batch, once for each time it was appended
        self.prepared: list[list[str]] = []
        self.stored: list[list[str]] = []
        self.probes = 0
        self.upkeep_due = False
        self.upkeep_left = False
        self.upkeeps: list[bool] = []
        self.upkeep_error: BaseException | None = None
        self.verify_error: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def hold(self, event_id: str, stored: bool = False) -> asyncio.Future[None]:
        """The future that this event's batch waits for, before or after it is stored; its exception is raised."""
        held = asyncio.get_running_loop().create_future()
        (self.after if stored else self.before)[event_id] = held
        return held

    async def prepare(self, batch: Any) -> None:
        self.prepared.append(ids(batch))
        self._fail_as_scripted()
        await self.engine.prepare(batch)

    async def append(self, batch: Any) -> Commit:
        self.handed_over.append(ids(batch))
        await self._wait(self.before, batch)
        self._fail_as_scripted()
        commit = await self.engine.append(batch)
        self.stored.append(ids(batch))
        await self._wait(self.after, batch)
        return commit

    async def probe(self) -> None:
        self.probes += 1
        self._fail_as_scripted()
        await self.engine.probe()

    async def upkeep(self, quiet: bool) -> bool:
        self.upkeeps.append(quiet)
        if self.upkeep_error:
            raise self.upkeep_error
        if quiet:
            self.upkeep_left = self.upkeeps.count(True) < 3
        else:
            self.upkeep_due = False
        return self.upkeep_left

    async def verify(self) -> None:
        if self.verify_error:
            raise self.verify_error
        await self.engine.verify()

    async def _wait(self, holds: dict[str, asyncio.Future[None]], batch: Any) -> None:
        for event_id in ids(batch):
            if event_id in holds:
                await holds[event_id]

    def _fail_as_scripted(self) -> None:
        step = self.script.pop(0) if self.script else None
        if step is not None:
            raise step


async def many_turns() -> None:
    """Let everything run that waits for nothing: more turns of the loop than the consumer takes for anything."""
    for _ in range(100):
        await asyncio.sleep(0)


def ids(batch: Any) -> list[str]:
    """The event ids of a batch of any engine used here."""
    event_ids: list[str] = batch.events.event_ids
    return event_ids.copy()


class Bench:
    """A running consumer, and what it has told each submission, by the id of its first event."""

    def __init__(self, engine: Scripted, max_batch: int = 100, max_bytes: int = 10**6) -> None:
        self.engine = engine
        self.stats = Stats()
        self.health = Health()
        self.intake = Intake(max_events=1000, max_bytes=max_bytes)
        consumer = Consumer(self.intake, cast(AnyEngine, engine), self.stats, self.health, max_batch, self._publish)
        self.told: dict[str, list[Outcome]] = {}
        self.ids: dict[str, tuple[str, ...]] = {}
        self.published: list[Position] = []
        self.task = asyncio.create_task(consumer.run())

    def _publish(self, parts: Sequence[Events], commit: Commit, head: Position) -> None:
        """Check that a commit is published in one piece, after its acks, and that the position only rises."""
        assert any(isinstance(outcome, Commit) for outcomes in self.told.values() for outcome in outcomes)
        assert len(commit.seqs) == sum(map(len, parts))
        assert not self.published or self.engine.distance(self.published[-1], head) > 0
        self.published.append(head)

    def put(self, *ids: str, size_bytes: int = 2) -> None:
        outcomes = self.told.setdefault(ids[0], [])
        self.ids[ids[0]] = ids
        events = Events.of(Event.of(f"t{len(one) % 2}", one, b"x" * size_bytes) for one in ids)
        self.intake.put(Submission(events, outcomes.append))

    async def finish(self) -> None:
        """Let the consumer end; what it has told must be true."""
        self.intake.close()
        async with asyncio.timeout(30):
            await self.task
        await self.check_told()

    async def fail(self) -> None:
        """Wait until the consumer has failed; what it has told must be true."""
        async with asyncio.timeout(30):
            await asyncio.wait([self.task])
        assert self.task.exception()
        await self.check_told()

    async def until_told(self, *names: str) -> None:
        await until(lambda: all(self.told[name] for name in names))

    async def until_handed_over(self, event_id: str) -> None:
        await until(lambda: event_id in itertools.chain(*self.engine.handed_over))

    def acked(self, name: str) -> Commit:
        """The commit that a submission was told, exactly once."""
        (outcome,) = self.told[name]
        assert isinstance(outcome, Commit), outcome
        return outcome

    def refused(self, name: str) -> Failure:
        """The failure that a submission was told, exactly once."""
        (outcome,) = self.told[name]
        assert isinstance(outcome, Failure), outcome
        return outcome

    async def check_told(self) -> None:
        """Each was told once; each ack has the seq of its stored event; at most one ack calls an event new."""
        stored_as_new: Counter[str] = Counter()
        for name, outcomes in self.told.items():
            (outcome,) = outcomes
            if isinstance(outcome, Failure):
                continue
            for position, one in enumerate(self.ids[name]):
                stored = await self.engine.event(f"t{len(one) % 2}", one)
                assert stored, f"{one} was acked and is not stored"
                assert outcome.seq(position) == stored.seq
                stored_as_new[one] += outcome.offset + position not in outcome.duplicates
        assert set(stored_as_new.values()) <= {0, 1}, "two acks say that the same event is new"


@contextlib.asynccontextmanager
async def at_work(engine: AnyEngine, *script: BaseException | None, **limits: int) -> AsyncIterator[Bench]:
    """A consumer over such an engine; it ends with its test."""
    bench = Bench(Scripted(engine, *script), **limits)
    yield bench
    bench.task.cancel()
    await asyncio.gather(bench.task, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "it leaves no task behind"


@pytest.fixture(params=ENGINES)
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnyEngine]:
    async with opened(request.param, tmp_path) as engine:
        yield engine


@pytest.fixture
async def bench(engine: AnyEngine) -> AsyncIterator[Bench]:
    async with at_work(engine) as bench:
        yield bench


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries and work for quiet times come at once."""
    monkeypatch.setattr(consumer_module, "RETRY_S", 0.001)
    monkeypatch.setattr(consumer_module, "IDLE_S", 0.001)


@pytest.fixture
def watched_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine verifies all the time that what it has stored is still there."""
    monkeypatch.setattr(consumer_module, "WATCH_S", 0.001)


# --- batches


async def test_what_is_queued_is_one_batch_and_what_arrives_during_a_commit_the_next(bench: Bench) -> None:
    busy = [f"busy-{number}" for number in range(bench.engine.appends_at_once)]
    holds = [bench.engine.hold(name) for name in busy]
    for name in busy:
        bench.put(name)
        await bench.until_handed_over(name)
    bench.put("b", "c")
    bench.put("d")
    for hold in holds:
        hold.set_result(None)
    await bench.finish()

    assert bench.engine.handed_over == [*([name] for name in busy), ["b", "c", "d"]]


async def test_each_submission_is_told_its_own_part_of_the_commit(bench: Bench) -> None:
    bench.put("a", "b")
    bench.put("b", "c")
    await bench.finish()

    assert bench.engine.handed_over == [["a", "b", "b", "c"]]
    assert bench.acked("b").seq(0) == bench.acked("a").seq(1)
    assert (bench.stats.stored, bench.stats.duplicate, bench.stats.batches) == (3, 1, 1)


async def test_a_batch_is_no_larger_than_allowed_and_no_submission_is_split(bench: Bench) -> None:
    for name in "abc":
        bench.put(*(f"{name}{i}" for i in range(60)))
    bench.put(*(f"d{i}" for i in range(150)))
    await bench.finish()

    assert [len(batch) for batch in bench.engine.handed_over] == [60, 60, 60, 150]


async def test_a_batch_is_bounded_by_bytes_too(engine: AnyEngine) -> None:
    async with at_work(engine, max_bytes=100) as bench:
        for name in "abcde":
            bench.put(name, size_bytes=60)
        await bench.finish()

        assert bench.engine.handed_over == [["a"], ["b"], ["c"], ["d"], ["e"]]


async def test_a_full_batch_is_prepared_while_the_one_before_commits(engine: AnyEngine) -> None:
    async with at_work(engine, max_batch=2) as bench:
        names = [*"abcdef"[: engine.appends_at_once], "full", "filling"]
        held = [bench.engine.hold(name) for name in names[:-2]]
        for name in names:
            bench.put(name, name + "-2")
        await until(lambda: ["full", "full-2"] in bench.engine.prepared)
        assert bench.engine.stored == []
        for hold in held:
            hold.set_result(None)
        await bench.finish()

        assert ["filling", "filling-2"] not in bench.engine.prepared
        assert bench.engine.handed_over == [[name, name + "-2"] for name in names]


async def test_closed_it_stores_what_is_queued_and_what_is_under_way(engine: AnyEngine) -> None:
    async with at_work(engine, max_batch=2) as bench:
        held = bench.engine.hold("a0")
        for name in "abcd":
            bench.put(f"{name}0", f"{name}1")
        await bench.until_handed_over("a0")
        bench.intake.close()
        await many_turns()
        assert not bench.task.done()
        held.set_result(None)
        await bench.task
        await asyncio.sleep(0)
        await bench.check_told()

        assert engine.stored_total == 8


# --- failures


async def test_a_full_disk_fails_its_batch_alone(engine: AnyEngine) -> None:
    async with at_work(engine, FULL) as bench:
        bench.put("a")
        await bench.until_told("a")
        assert bench.health.trouble == "full"
        bench.put("b")
        await bench.finish()

        assert bench.refused("a") == Failure(Code.STORAGE_FULL, "full")
        assert bench.acked("b")
        assert bench.stats.errors == 1
        assert not bench.health.trouble
        assert not bench.health.failure


@pytest.mark.usefixtures("no_pause")
async def test_after_a_full_disk_health_recovers_without_traffic(engine: AnyEngine) -> None:
    async with at_work(engine, FULL, FULL, BUSY, None) as bench:
        bench.put("a")
        await until(lambda: bench.engine.probes == 3 and not bench.health.trouble)

        assert bench.engine.handed_over == [["a"]]


@pytest.mark.usefixtures("no_pause")
async def test_the_end_waits_for_no_probe(engine: AnyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away may take a long time to say so."""
    async with at_work(engine, FULL) as bench:
        probing = asyncio.Event()

        async def probe() -> None:
            probing.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(bench.engine, "probe", probe)
        bench.put("a")
        async with asyncio.timeout(DEADLINE_S):
            await probing.wait()
            await bench.finish()


@pytest.mark.usefixtures("no_pause")
async def test_a_busy_store_is_tried_again_and_nobody_is_told(engine: AnyEngine) -> None:
    async with at_work(engine, BUSY, BUSY, BUSY) as bench:
        bench.put("a")
        await bench.finish()

        assert bench.acked("a")
        assert bench.engine.handed_over == [["a"]] * 4
        assert bench.stats.errors == 0
        assert bench.health.trouble is None


@pytest.mark.parametrize("error", [FAILED, RuntimeError("a defect"), asyncio.CancelledError()], ids=repr)
async def test_a_broken_store_ends_the_consumer_and_no_ack_follows(engine: AnyEngine, error: BaseException) -> None:
    async with at_work(engine, None, error) as bench:
        bench.put("a")
        await bench.until_told("a")
        held = bench.engine.hold("b")
        bench.put("b")
        await bench.until_handed_over("b")
        bench.put("c")
        held.set_result(None)
        await bench.fail()
        bench.put("late")

        assert bench.acked("a")
        for name in ("b", "c", "late"):
            assert bench.refused(name) == Failure(Code.STORAGE, f"the store has failed: {bench.health.failure}")
        assert bench.health.failure in ("EIO", "a defect", "the engine has given up an append")
        assert bench.stats.errors == 3
        assert bench.intake.waiting_events == 0


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("failing_call", range(6))
@pytest.mark.parametrize("error", [FULL, BUSY, FAILED], ids=repr)
async def test_whichever_call_fails_nothing_is_acked_that_is_not_stored(
    engine: AnyEngine, failing_call: int, error: StorageError
) -> None:
    async with at_work(engine, *[None] * failing_call, error, max_batch=2) as bench:
        names = [f"n{i}" for i in range(8)]
        for name in names:
            bench.put(name, name + "x")
        bench.intake.close()
        await asyncio.wait([bench.task])
        await asyncio.sleep(0)
        await bench.check_told()

        stored = set(itertools.chain(*bench.engine.stored))
        refused = [name for name in names if isinstance(bench.told[name][0], Failure)]
        if error is FAILED:
            assert refused
        else:
            assert stored == {one for name in names if name not in refused for one in (name, name + "x")}
        assert len(refused) == {BUSY: 0, FULL: 1}.get(error, len(refused))


@pytest.mark.parametrize("error", [FULL, FAILED], ids=repr)
async def test_a_batch_whose_preparation_fails_is_told_so(engine: AnyEngine, error: StorageError) -> None:
    async with at_work(engine, max_batch=1) as bench:
        busy = [f"busy-{number}" for number in range(engine.appends_at_once)]
        held = [bench.engine.hold(name) for name in busy]
        for name in busy:
            bench.put(name)
        await bench.until_handed_over(busy[-1])
        bench.engine.script = [error]
        bench.put("a")
        bench.put("b")
        await until(lambda: ["a"] in bench.engine.prepared)
        for hold in held:
            hold.set_result(None)
        await bench.until_told("a", "b")

        assert bench.refused("a").code == (Code.STORAGE_FULL if error is FULL else Code.STORAGE)
        assert ["a"] not in bench.engine.handed_over
        if error is FULL:
            await bench.finish()
            assert all(bench.acked(name) for name in ("b", *busy))
        else:
            await bench.fail()
            assert bench.refused("b")


async def test_a_batch_that_cannot_be_filled_ends_the_consumer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each earlier batch is stored or not; the submission that was to be added has been told nothing yet."""
    held = bench.engine.hold("a")
    bench.put("a")
    await bench.until_handed_over("a")
    new_batch = bench.engine.new_batch

    def broken_batch() -> Any:
        batch = new_batch()
        monkeypatch.setattr(batch, "add", broken_add)
        return batch

    def broken_add(events: Events) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(bench.engine, "new_batch", broken_batch, raising=False)
    for name in ("b", "c", "d"):
        bench.put(name, *(f"{name}-{number}" for number in range(99)))
    held.set_result(None)
    await bench.fail()

    assert bench.health.failure == "a defect"
    assert bench.refused("d")


async def test_a_client_that_fails_when_there_is_room_leaves_nobody_untold(bench: Bench) -> None:
    def broken() -> None:
        raise RuntimeError("a defect")

    for _ in range(3):  # the second and third are called when the consumer gives up what is queued
        bench.intake.when_room(broken)
    bench.put("a")
    bench.put("b")
    await bench.fail()

    assert bench.told["a"]
    assert bench.told["b"]


async def test_what_waits_for_room_when_the_store_fails_is_told_so(engine: AnyEngine) -> None:
    async with at_work(engine, FAILED) as bench:
        bench.intake.when_room(lambda: bench.intake.when_room(lambda: bench.put("waits")))
        bench.put("a")
        await bench.fail()

        assert bench.refused("waits").code == Code.STORAGE


async def test_cancelled_it_tells_nobody_and_leaves_nothing_running(bench: Bench) -> None:
    bench.engine.hold("a")
    bench.put("a")
    await bench.until_handed_over("a")
    bench.put("b")
    bench.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bench.task

    assert bench.told == {"a": [], "b": []}
    assert bench.health.failure is None


# --- what is stored is no longer there


@pytest.mark.usefixtures("watched_closely")
async def test_what_is_gone_ends_an_idle_consumer(bench: Bench) -> None:
    bench.put("a")
    await bench.until_told("a")
    bench.engine.verify_error = FAILED
    await bench.fail()
    bench.put("late")

    assert bench.acked("a")
    assert bench.refused("late").code == Code.STORAGE
    assert bench.health.failure == "EIO"


@pytest.mark.usefixtures("watched_closely")
async def test_what_is_gone_ends_a_consumer_whose_batches_do_not_end(engine: AnyEngine) -> None:
    async with at_work(engine, max_batch=1) as bench:
        bench.engine.hold("a")
        for name in "abcd":
            bench.put(name)
        await bench.until_handed_over("a")
        bench.engine.verify_error = FAILED
        await bench.fail()
        bench.put("late")

        assert bench.refused("a").code == bench.refused("late").code == Code.STORAGE


@pytest.mark.usefixtures("no_pause", "watched_closely")
async def test_what_is_gone_ends_a_consumer_that_waits_for_a_busy_store(engine: AnyEngine) -> None:
    async with at_work(engine, *[BUSY] * 10_000) as bench:
        bench.put("a")
        await until(lambda: bench.health.trouble)
        bench.engine.verify_error = FAILED
        await bench.fail()

        assert bench.refused("a").code == Code.STORAGE


async def test_what_is_gone_when_it_is_closed_is_said(bench: Bench) -> None:
    bench.put("a")
    await bench.until_told("a")
    bench.engine.verify_error = FAILED
    bench.intake.close()
    await bench.fail()

    assert bench.health.failure == "EIO"


# --- upkeep


async def test_upkeep_that_is_due_is_done_beside_a_batch(bench: Bench) -> None:
    bench.engine.upkeep_due = True
    bench.put("a")
    await bench.finish()

    assert bench.engine.upkeeps == [False]


async def test_upkeep_that_fails_ends_the_consumer_and_each_is_told_once(bench: Bench) -> None:
    bench.engine.upkeep_due = True
    bench.engine.upkeep_error = FAILED
    bench.put("a")
    await bench.fail()

    assert len(bench.told["a"]) == 1
    assert bench.health.failure == "EIO"


@pytest.mark.usefixtures("no_pause")
async def test_upkeep_that_is_left_is_done_in_quiet_times_until_nothing_is_left(bench: Bench) -> None:
    bench.engine.upkeep_left = True
    bench.put("a")
    await bench.until_told("a")
    await until(lambda: not bench.engine.upkeep_left)

    assert bench.engine.upkeeps == [True] * 3
    bench.put("b")
    await bench.finish()
    assert bench.engine.upkeeps == [True] * 3


@pytest.mark.usefixtures("no_pause")
async def test_upkeep_that_fails_in_a_quiet_time_ends_the_consumer(bench: Bench) -> None:
    bench.put("a")
    await bench.until_told("a")
    bench.engine.upkeep_error = FAILED
    bench.engine.upkeep_left = True
    bench.put("b")
    await bench.fail()

    assert bench.acked("a")
    assert bench.acked("b")


@pytest.mark.usefixtures("no_pause")
async def test_a_quiet_time_ends_when_something_arrives(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = 0

    async def endless(quiet: bool) -> bool:
        nonlocal pieces
        pieces += 1
        await asyncio.sleep(0)
        return True

    monkeypatch.setattr(bench.engine, "upkeep", endless)
    bench.engine.upkeep_left = True
    bench.put("a")
    await until(lambda: pieces > 3)
    bench.put("b")
    await bench.until_told("b")
    bench.engine.upkeep_left = False
    await bench.finish()


# --- two batches at a time


@pytest.fixture
async def two() -> AsyncIterator[Bench]:
    """A consumer over an engine that takes two batches; "a" and "b" are in flight, each in its own batch."""
    async with at_work(DictEngine(write_s=[0.0])) as bench:
        for name in "ab":
            bench.engine.hold(name)
            bench.put(name)
            await bench.until_handed_over(name)
        yield bench


async def test_two_batches_are_on_their_way_and_no_third(two: Bench) -> None:
    two.put("c")
    await many_turns()
    assert two.engine.handed_over == [["a"], ["b"]]
    two.engine.before["b"].set_result(None)
    await two.until_told("b", "c")
    assert two.told["a"] == []
    two.engine.before["a"].set_result(None)
    await two.finish()

    assert two.engine.stored == [["b"], ["c"], ["a"]]


@pytest.mark.parametrize(("failing", "other"), ["ab", "ba"])
async def test_of_two_batches_the_disk_is_full_for_one(two: Bench, failing: str, other: str) -> None:
    two.engine.before[failing].set_exception(FULL)
    two.engine.before[other].set_result(None)
    await two.finish()

    assert two.refused(failing).code == Code.STORAGE_FULL
    assert two.acked(other)


async def test_the_disk_is_full_for_both(two: Bench) -> None:
    for name in "ab":
        two.engine.before[name].set_exception(FULL)
    await two.until_told("a", "b")
    two.put("c")
    await two.finish()

    assert [two.refused(name).code for name in "ab"] == [Code.STORAGE_FULL] * 2
    assert two.acked("c")
    assert two.stats.errors == 2


@pytest.mark.parametrize(("failing", "other"), ["ab", "ba"])
async def test_a_batch_that_is_stored_in_the_moment_in_which_another_fails_keeps_its_ack(
    two: Bench, failing: str, other: str
) -> None:
    stored = two.engine.hold(other, stored=True)
    two.engine.before[other].set_result(None)
    await until(lambda: [other] in two.engine.stored)
    two.put("c")
    stored.set_result(None)
    two.engine.before[failing].set_exception(FAILED)
    await two.fail()

    assert two.acked(other)
    assert two.refused(failing).code == Code.STORAGE
    assert two.refused("c").code == Code.STORAGE
    assert two.stats.errors == 2


@pytest.mark.parametrize(("failing", "other"), ["ab", "ba"])
async def test_when_one_fails_the_other_is_unknown(two: Bench, failing: str, other: str) -> None:
    two.engine.before[failing].set_exception(FAILED)
    await two.fail()

    assert two.refused(failing) == two.refused(other) == Failure(Code.STORAGE, "the store has failed: EIO")


async def test_an_append_that_cannot_be_stopped_is_not_told_a_second_time(
    two: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    appending = asyncio.Event()

    async def unstoppable(batch: Any) -> Commit:
        appending.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return await two.engine.engine.append(batch)

    two.engine.before["b"].set_result(None)
    await two.until_told("b")
    monkeypatch.setattr(two.engine, "append", unstoppable)
    two.put("c")
    await appending.wait()
    two.engine.before["a"].set_exception(FAILED)
    await two.fail()
    await asyncio.sleep(0)

    assert two.acked("b")
    assert two.refused("c").code == Code.STORAGE


async def test_both_fail_at_the_same_moment(two: Bench) -> None:
    two.engine.before["a"].set_exception(FAILED)
    two.engine.before["b"].set_exception(RuntimeError("a defect"))
    await two.fail()

    assert two.refused("a") == two.refused("b")


async def test_a_failure_while_the_last_ones_are_awaited_is_noticed_at_once(two: Bench) -> None:
    two.intake.close()
    await many_turns()
    two.engine.before["b"].set_exception(FAILED)
    await two.fail()

    assert two.refused("a")
    assert two.refused("b")


@pytest.mark.usefixtures("no_pause")
async def test_a_batch_that_is_tried_again_holds_up_later_ones_only_until_it_is_handed_over(two: Bench) -> None:
    two.engine.before["a"].set_exception(BUSY)
    await until(lambda: two.health.trouble)
    two.engine.before["a"] = asyncio.get_running_loop().create_future()
    two.put("c")
    await until(lambda: two.engine.handed_over.count(["a"]) >= 2)
    two.engine.before["b"].set_result(None)
    await two.until_told("b", "c")
    assert two.told["a"] == []
    two.engine.before["a"].set_result(None)
    await two.finish()


async def test_batches_are_handed_over_in_the_order_of_their_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the preparation of one batch takes longer than the commits before it."""
    async with at_work(DictEngine(write_s=[0.0]), max_batch=1) as bench:
        prepared = asyncio.Event()

        async def prepare(batch: Any) -> None:
            await prepared.wait()

        monkeypatch.setattr(bench.engine, "prepare", prepare)
        held = [bench.engine.hold(name) for name in "ab"]
        for name in "abcde":
            bench.put(name)
        await bench.until_handed_over("b")
        for hold in held:
            hold.set_result(None)
        await bench.until_told("a", "b")
        await many_turns()
        prepared.set()
        await bench.finish()

        assert bench.engine.handed_over == [[name] for name in "abcde"]


async def test_health_knows_the_oldest_commit_that_is_running(two: Bench) -> None:
    first = two.health.commit_started
    assert first is not None
    two.engine.before["a"].set_result(None)
    await two.until_told("a")
    second = two.health.commit_started
    assert second is not None
    assert second > first
    two.put("c")
    await two.until_told("c")
    assert two.health.commit_started == second
    two.engine.before["b"].set_result(None)
    await two.until_told("b")
    await until(lambda: two.health.commit_started is None)


# --- whatever happens


def faults(errors: Iterable[BaseException]) -> st.SearchStrategy[list[BaseException | None]]:
    return st.lists(st.sampled_from([None, None, None, *errors]), max_size=12)


@settings(max_examples=300)
@given(
    submissions=st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4), min_size=1, max_size=12),
    script=faults([FULL, BUSY]) | faults([FULL, BUSY, FAILED, RuntimeError("a defect")]),
    turns=st.lists(st.integers(0, 4), min_size=12, max_size=12),
    write_s=st.lists(st.sampled_from([0.0, 0.0, 0.001]), min_size=1, max_size=4),
    max_batch=st.integers(1, 6),
)
def test_whatever_happens_each_is_told_once_and_acks_are_true(
    submissions: list[list[str]],
    script: list[BaseException | None],
    turns: list[int],
    write_s: list[float],
    max_batch: int,
) -> None:
    async def go() -> None:
        async with at_work(DictEngine(write_s), *script, max_batch=max_batch) as bench:
            bench.engine.upkeep_due = True
            for number, keys in enumerate(submissions):
                outcomes = bench.told.setdefault(str(number), [])
                bench.ids[str(number)] = tuple(keys)
                events = Events.of(Event.of(f"t{len(key) % 2}", key, b"x") for key in keys)
                bench.intake.put(Submission(events, outcomes.append))
                for _ in range(turns[number]):
                    await asyncio.sleep(0)
            bench.intake.close()
            async with asyncio.timeout(30):
                await asyncio.wait([bench.task])
            await asyncio.sleep(0)
            await bench.check_told()

            acked = sum(len(bench.ids[name]) for name, (told,) in bench.told.items() if isinstance(told, Commit))
            assert acked == bench.stats.stored + bench.stats.duplicate
            assert bench.stats.errors == sum(map(len, bench.ids.values())) - acked
            assert bench.intake.waiting_events == 0
            if not bench.health.failure:
                assert bench.engine.stored_total == bench.stats.stored
                assert not bench.task.exception()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consumer_module, "RETRY_S", 0.0)
        asyncio.run(go())
