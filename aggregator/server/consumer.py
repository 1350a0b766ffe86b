"""Queue to batches, batches to the engine, and, after the commit, outcomes to the senders of the events.

While one batch commits, the next batch is filled: events that arrive during a commit are packed as they arrive. No
timer is needed. A batch that is full before its turn is set aside and prepared, and another is filled. Upkeep also runs
alongside commits, so that the engine is busy while the event loop gets the next batch ready.

Every submission in a batch is told the outcome of the batch exactly once:

- committed: a Commit. Only then may an ack leave;
- no space: a Failure with ``storage_full``. The store is intact, and the next batch is tried as usual. While there is
  no next batch, the store is probed, so that HEALTH recovers without new events;
- the store is busy: nobody is told anything yet, and the batch is appended again later;
- any other error: a Failure with ``storage``, for this batch and for everything that is queued. ``run`` raises, and the
  server has to stop, because after a failed fsync nothing this process believes about the disk can be trusted.
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
"""Pause before a busy or full store is tried again. Acks have to resume within 2 s after space returns, and a probe
costs one fsync."""

WATCH_S: Final = 1.0
"""How often the engine verifies that what it has stored is still there."""

IDLE_S: Final = 1.0
"""After this long without events, upkeep that is not due yet is done too."""

Publish = Callable[[Sequence[Events], Commit, Position], None]
"""Called for each commit, after its acks: with its events in the parts in which they came, and the position after."""


class _Filling:
    """A batch, the submissions in it, and its preparation, if that has begun."""

    def __init__(self, engine: AnyEngine) -> None:
        self._engine = engine
        self.batch: Any = engine.new_batch()
        self.submissions: list[Submission] = []
        self.preparing: asyncio.Task[None] | None = None
        self.handed_over = 0.0  # time.monotonic() when it was handed over to be appended

    def add(self, submission: Submission) -> None:
        self.batch.add(submission.events)
        self.submissions.append(submission)

    def prepare(self) -> None:
        """Start to prepare the batch, once."""
        if not self.preparing:
            self.preparing = asyncio.create_task(self._engine.prepare(self.batch))

    async def prepared(self) -> None:
        """Wait for the preparation, if it was started, and raise what it has raised."""
        if self.preparing:
            preparing, self.preparing = self.preparing, None
            await preparing

    def take(self) -> list[Submission]:
        """Take its submissions, to tell them the outcome. A second call finds none, so nobody is told twice."""
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
        self._failure: StorageFailed | None = None  # met by another part that writes to the store
        self._over = False  # something has failed: no further batch may be stored
        self._filling = _Filling(engine)
        self._full: _Filling | None = None  # the next batch, ahead of the one that is being filled
        self._held_over: Submission | None = None  # taken from the intake, and not in a batch yet
        self._under_way: list[_Filling] = []  # being appended, in the order of their events
        self._turn = asyncio.Lock()  # held for the batch that is handed to the engine next
        self._quiet = asyncio.Lock()  # held while quiet time is used
        self._arrived = asyncio.Event()  # something has arrived, or nothing ever will again
        self._ended = asyncio.Event()  # one of the tasks has ended, or all have to end
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
            if not self._engine.shared:  # a shared store may be out of reach, and other servers look after it
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
        """Pack what arrives into the next batch. A submission is never split, so it may exceed a batch's limits."""
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
        """Start to prepare the full batch while another is being appended."""
        if self._full and self._under_way:
            self._full.prepare()

    # --- storing

    async def _append_batches(self) -> None:
        """Store one batch after another. As many of these tasks run as appends may be under way at a time."""
        try:
            while batch := await self._next():
                await self._store(batch)
                if self._under_way:  # another append may have failed in this turn of the loop: that comes first
                    await asyncio.sleep(0)
        except BaseException:
            self._over = True
            raise

    async def _next(self) -> _Filling | None:
        """The next batch, which is under way from now on; None if none will follow.

        If a batch is ready, nothing is awaited, so the engine gets the batch in the same turn of the loop in which the
        engine has become free.
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
            # In the loop's next turn: by then the next batch, if there is one, is on its way to the disk, and the
            # replies are written while it commits.
            asyncio.get_running_loop().call_soon(self._acknowledge, filling.take(), commit, self._engine.head)
        self._under_way.remove(filling)
        self._note_oldest()

    async def _append(self, filling: _Filling) -> Commit:
        pause_s = 0.0
        while True:
            try:
                async with self._turn:  # in the order of their events; a batch that pauses here holds up later ones
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
        """Start the upkeep that is due, alongside the batch that is being appended."""
        self._note_upkeep()
        if not self._upkeep and not self._quiet.locked() and self._engine.upkeep_due:
            self._upkeep = self._start(self._engine.upkeep(quiet=False))

    def _note_upkeep(self) -> None:
        """If the upkeep has ended, raise what it has raised."""
        if self._upkeep and self._upkeep.done():
            upkeep, self._upkeep = self._upkeep, None
            upkeep.result()

    async def _end_upkeep(self) -> None:
        """Wait for the upkeep, and raise what it has raised."""
        if self._upkeep:
            await self._upkeep
            self._upkeep = None

    async def _probe(self) -> None:
        probing = asyncio.create_task(self._engine.probe())
        try:
            await asyncio.wait({probing, self._filler}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            probing.cancel()  # if it is still running, the server is stopping, and nothing is left to be stored
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
        """Once a second, verify that what is stored is still there. Never returns."""
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
        """End ``run`` with this error, which another part met while writing to the same store."""
        self._failure = error
        self._over = True
        self._ended.set()

    def _fail(self, why: str) -> None:
        """Tell every submission, those of now and those to come, that nothing is stored any more."""
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
                raise StorageFailed("the engine has cancelled an append")
            task.result()
