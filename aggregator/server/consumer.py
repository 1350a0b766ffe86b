"""Queue to batches, batches to the engine, outcomes to those who sent the events, after the commit.

While a batch commits, the next batch is filled: what arrives during a commit is packed as it arrives. It needs no
timer. A batch that is full before its turn is set aside and prepared, and another is filled. Upkeep is done beside
commits too, so that the engine is busy while the event loop makes the next batch ready.

What happens to a batch is told to every submission in it, exactly once:

- committed: a Commit, and only then may an ack leave;
- there is no space: a Failure with ``storage_full``. The store is intact, the next batch is tried as usual, and while
  there is none the store is probed, so that HEALTH recovers by itself;
- nothing may be appended at the moment: nobody is told anything, the batch is appended again later;
- anything else: a Failure with ``storage`` for this batch and all that are queued, and ``run`` raises: the server
  has to stop, because after a failed fsync nothing this process believes about the disk can be trusted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from aggregator.event import Events
from aggregator.server.health import Health
from aggregator.server.intake import Intake, Outcome, Submission
from aggregator.server.stats import Stats
from aggregator.storage.engine import AnyEngine, Commit, Position, StorageBusy, StorageFailed, StorageFull
from aggregator.wire import replies

log = logging.getLogger("aggregator")

T = TypeVar("T")

RETRY_S: Final = 0.5
"""Pause before a busy or full store is tried again: acks are to resume within 2 s of space returning, and a probe costs
one fsync."""

WATCH_S: Final = 1.0
"""How often the engine verifies that what it has stored is still there."""

IDLE_S: Final = 1.0
"""After so long without events, upkeep that is not due yet is done too."""

Publish = Callable[[Sequence[Events], Commit, Position], None]
"""Gets the events of each commit, in the parts in which they came, after their acks, and the position behind it."""


class _Filling:
    """A batch, the submissions in it, and its preparation, if that has begun."""

    def __init__(self, engine: AnyEngine) -> None:
        self._engine = engine
        self.batch: Any = engine.new_batch()
        self.submissions: list[Submission] = []
        self.preparing: asyncio.Task[None] | None = None
        self.handed_over = 0.0  # to be appended; time.monotonic()

    def add(self, submission: Submission) -> None:
        self.batch.add(submission.events)
        self.submissions.append(submission)

    def prepare(self) -> None:
        """Begin to prepare it, once."""
        if not self.preparing:
            self.preparing = asyncio.create_task(self._engine.prepare(self.batch))

    async def prepared(self) -> None:
        """Wait for that, if it was begun, and raise what it has raised."""
        if self.preparing:
            preparing, self.preparing = self.preparing, None
            await preparing

    def take(self) -> list[Submission]:
        """Its submissions, to be told. A second call finds none, so that nobody is told twice."""
        taken, self.submissions = self.submissions, []
        return taken


class Consumer:
    """Moves submissions from the intake into the engine until the intake is closed or the engine fails."""

    def __init__(
        self, intake: Intake, engine: AnyEngine, stats: Stats, health: Health, max_batch: int, publish: Publish
    ) -> None:
        self._intake = intake
        self._engine = engine
        self._stats = stats
        self._health = health
        self._max_batch = max_batch
        self._publish = publish
        self._failure: StorageFailed | None = None  # of somebody else who writes
        self._over = False  # something has failed: no further batch may be stored
        self._filling = _Filling(engine)
        self._full: _Filling | None = None  # is the next, before the batch that is being filled
        self._held_over: Submission | None = None  # is not in a batch yet
        self._under_way: list[_Filling] = []  # being appended, in the order of their events
        self._turn = asyncio.Lock()  # to be handed to the engine
        self._quiet = asyncio.Lock()  # to use quiet times
        self._arrived = asyncio.Event()  # something arrived, or will never again
        self._ended = asyncio.Event()  # one of the tasks, or all is to end
        self._room = asyncio.Event()
        self._filler: asyncio.Task[None]
        self._upkeep: asyncio.Task[bool] | None = None

    async def run(self) -> None:
        """Return when the intake is closed and empty. Raises StorageFailed, or whatever a defect raises."""
        self._filler = self._start(self._fill())
        watching = self._start(self._watch())
        appenders = [self._start(self._append_batches()) for _ in range(self._engine.appends_at_once)]
        try:
            while not all(appender.done() for appender in appenders):
                await self._ended.wait()
                self._ended.clear()
                if self._failure:
                    raise self._failure
                _raise_what_was_raised(watching, *appenders)
            await self._end_upkeep()
            if not self._engine.shared:  # it may be out of reach, and others look after it
                await self._engine.verify()
        except asyncio.CancelledError:
            raise  # the process ends, and its connections with it
        except BaseException as error:
            self._fail(str(error) or type(error).__name__)
            raise
        finally:
            batches = [*self._under_way, *([self._full] if self._full else [])]
            tasks = [self._filler, watching, *appenders, self._upkeep, *(batch.preparing for batch in batches)]
            running = [task for task in tasks if task]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        self._ended.set()
        self._arrived.set()

    # --- filling

    async def _fill(self) -> None:
        """Pack what arrives into the batch that is to be next. A submission is never split, so one may be larger."""
        while submission := await self._intake.get():
            self._held_over = submission
            while not self._fits(submission):
                if not self._full:
                    self._full, self._filling = self._filling, _Filling(self._engine)
                    self._prepare_full()
                else:
                    self._room.clear()
                    await self._room.wait()
            self._filling.add(submission)
            self._held_over = None
            self._arrived.set()

    def _fits(self, submission: Submission) -> bool:
        batch = self._filling.batch
        return not self._filling.submissions or (
            len(batch) + len(submission.events) <= self._max_batch
            and batch.size_bytes + submission.size_bytes <= self._intake.max_bytes
        )

    def _prepare_full(self) -> None:
        """Have the full batch prepared behind one that is being appended."""
        if self._full and self._under_way:
            self._full.prepare()

    # --- storing

    async def _append_batches(self) -> None:
        """Store one batch after another. So many of these run as appends may be under way."""
        try:
            while batch := await self._next():
                await self._store(batch)
                if self._under_way:  # one of these may have failed in this turn of the loop: that comes first
                    await asyncio.sleep(0)
        except BaseException:
            self._over = True
            raise

    async def _next(self) -> _Filling | None:
        """The next batch, which is under way from now on; None if there will be none.

        If a batch is ready, nothing is awaited: the engine gets it in the turn of the loop in which it has become free.
        """
        while not (batch := self._take_batch()):
            if self._over or self._filler.done():
                return None
            await self._wait_for_events()
        batch.handed_over = time.monotonic()
        self._under_way.append(batch)
        self._note_oldest()
        self._room.set()
        self._intake.took(batch.submissions)
        return batch

    def _take_batch(self) -> _Filling | None:
        """The batch that is ready, if there is one. Raises what the filler or the upkeep has raised."""
        if self._over:
            return None
        self._note_upkeep()
        if self._filler.done():
            self._filler.result()  # a defect: the batch that is being filled cannot be trusted
        if self._full:
            batch, self._full = self._full, None
            return batch
        if self._filling.submissions:
            batch, self._filling = self._filling, _Filling(self._engine)
            return batch
        return None

    async def _wait_for_events(self) -> None:
        """Wait until something arrives; if nothing does for a while, use the time for upkeep."""
        quiet_s = None
        if not self._under_way and not self._quiet.locked():
            quiet_s = RETRY_S if self._health.trouble else IDLE_S if self._engine.upkeep_left else None
        self._arrived.clear()
        try:
            async with asyncio.timeout(quiet_s):
                await self._arrived.wait()
        except TimeoutError:
            async with self._quiet:
                await self._use_quiet_time()

    async def _use_quiet_time(self) -> None:
        await self._end_upkeep()
        if self._health.trouble:
            await self._probe()
            return
        while self._engine.upkeep_left and await self._engine.upkeep(quiet=True) and not self._arrived.is_set():
            pass

    async def _store(self, filling: _Filling) -> None:
        started = time.monotonic()
        try:
            commit = await self._append(filling)
        except StorageFull as error:
            self._in_trouble(str(error))
            self._tell(filling.take(), replies.storage_full(str(error)))
        else:
            self._out_of_trouble()
            duplicates = len(commit.duplicates)
            self._stats.committed(len(commit.seqs) - duplicates, duplicates, time.monotonic() - started)
            # In the loop's next turn: if more is queued, it is on its way to the disk by then, and replies are written
            # while it commits.
            asyncio.get_running_loop().call_soon(self._acknowledge, filling.take(), commit, self._engine.head)
        self._under_way.remove(filling)
        self._note_oldest()

    async def _append(self, filling: _Filling) -> Commit:
        pause_s = 0.0
        while True:
            try:
                async with self._turn:  # in the order of their events; what pauses here holds up later batches
                    if pause_s:
                        await asyncio.sleep(pause_s)
                    await filling.prepared()
                self._prepare_full()
                self._begin_upkeep()
                return await self._engine.append(filling.batch)
            except StorageBusy as error:
                self._in_trouble(str(error))
                pause_s = RETRY_S

    def _note_oldest(self) -> None:
        self._health.commit_started = self._under_way[0].handed_over if self._under_way else None

    def _begin_upkeep(self) -> None:
        """Have what is due done beside the batch that is being appended."""
        self._note_upkeep()
        if not self._upkeep and not self._quiet.locked() and self._engine.upkeep_due:
            self._upkeep = self._start(self._engine.upkeep(quiet=False))

    def _note_upkeep(self) -> None:
        """If it has ended, raise what it has raised."""
        if self._upkeep and self._upkeep.done():
            upkeep, self._upkeep = self._upkeep, None
            upkeep.result()

    async def _end_upkeep(self) -> None:
        """Wait for it, and raise what it has raised."""
        if self._upkeep:
            await self._upkeep
            self._upkeep = None

    async def _probe(self) -> None:
        probing = asyncio.create_task(self._engine.probe())
        try:
            await asyncio.wait({probing, self._filler}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            probing.cancel()  # if it goes on, the server stops, and nothing is left to be stored
        await asyncio.wait({probing})
        if probing.cancelled():
            return
        try:
            probing.result()
        except (StorageFull, StorageBusy) as error:
            self._in_trouble(str(error))
        else:
            self._out_of_trouble()

    async def _watch(self) -> None:
        """Once a second see whether what is stored is still there. Never returns."""
        while True:
            await asyncio.sleep(WATCH_S)
            await self._engine.verify()

    # --- telling

    def _in_trouble(self, reason: str) -> None:
        if self._health.trouble != reason:
            log.error("events are not being stored: %s", reason)
        self._health.trouble = reason

    def _out_of_trouble(self) -> None:
        if self._health.trouble:
            log.info("events are being stored again")
        self._health.trouble = None

    def _acknowledge(self, submissions: list[Submission], commit: Commit, head: Position) -> None:
        start = 0
        for submission in submissions:
            count = len(submission.events)
            submission.settle(commit.part(start, count))
            start += count
        self._publish([submission.events for submission in submissions], commit, head)

    def fail(self, error: StorageFailed) -> None:
        """End ``run`` with this error, which another part met that writes to the same store."""
        self._failure = error
        self._over = True
        self._ended.set()

    def _fail(self, why: str) -> None:
        """Tell everybody, now and from now on, that nothing is stored any more."""
        self._health.failure = why
        failure = replies.store_failed(why)
        handed_over = [submission for batch in self._under_way for submission in batch.take()]
        full = self._full.take() if self._full else []
        held_over = [self._held_over] if self._held_over else []
        queued = self._intake.divert(lambda submission: self._tell([submission], failure))
        waiting = [*full, *self._filling.take(), *held_over, *queued]
        self._tell([*handed_over, *waiting], failure)
        self._intake.took(waiting)

    def _tell(self, submissions: list[Submission], outcome: Outcome) -> None:
        for submission in submissions:
            self._stats.errors += len(submission.events)
            submission.settle(outcome)


def _raise_what_was_raised(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        if task.done():
            if task.cancelled():  # not by us
                raise StorageFailed("the engine has given up an append")
            task.result()
