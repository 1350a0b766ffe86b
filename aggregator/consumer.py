"""The only one that writes: queue -> batch -> ``store.append`` -> replies, after the commit.

While a batch commits, the next one is filled: what arrives meanwhile is packed as it arrives. It needs no timer. One
that is full meanwhile is set aside and decided, behind the commit, and another is filled. Whatever else the store has
to do is done behind a commit too, so that SQLite's thread is busy while the event loop makes the next batch ready.

What happens to a batch is told to every submission in it, exactly once:

- committed: a Commit, and only then may an ack leave;
- the disk is full: a Failure with ``storage_full``. The store is intact, the next batch is tried as usual, and while
  there is none the disk is probed, so that HEALTH recovers by itself;
- another program holds the write lock: nobody is told anything, the batch is tried again;
- anything else: a Failure with ``storage`` for this batch and all that are queued, and ``run`` raises: the server
  has to stop, for after a failed fsync nothing this process believes about the disk can be trusted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final, Protocol

from aggregator.batch import Batch
from aggregator.config import TRUNCATE_DIVISOR
from aggregator.intake import Commit, Failure, Intake, Submission
from aggregator.stats import Stats
from aggregator.store import (
    Checkpoint,
    StorageBusy,
    StorageFull,
)

log = logging.getLogger("aggregator")

RETRY_S: Final = 0.5
"""Pause before a busy database, a full disk or a failed checkpoint is tried again: acks are to resume within 2 s of
space returning, and a probe costs one fsync."""

IDLE_S: Final = 1.0
"""A WAL that nothing was added to for this long is checkpointed, however small."""


class Store(Protocol):
    """What the consumer needs of a store; tests put a failing one here."""

    last_checkpoint: Checkpoint

    @property
    def backlog_bytes(self) -> int: ...
    @property
    def wal_bytes(self) -> int: ...
    @property
    def checkpoint_due(self) -> bool: ...
    @property
    def work_due(self) -> bool: ...
    @property
    def work_left(self) -> bool: ...
    def new_batch(self) -> Batch: ...
    async def decide(self, batch: Batch) -> None: ...
    async def append(self, batch: Batch) -> int: ...
    async def work(self, quiet: bool) -> None: ...
    async def checkpoint(self, truncate: bool) -> None: ...
    async def probe(self) -> None: ...


class _Filling:
    """A batch, the submissions in it, and the deciding of it, if that has begun already."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.submissions: list[Submission] = []
        self.deciding: asyncio.Task[None] | None = None

    def add(self, submission: Submission) -> None:
        self.batch.add(submission.events)
        self.submissions.append(submission)


class Consumer:
    """Moves submissions from the intake into the store until the intake is closed or the store fails."""

    def __init__(self, intake: Intake, store: Store, stats: Stats, max_batch: int, wal_limit_bytes: int) -> None:
        self._intake = intake
        self._store = store
        self._stats = stats
        self._max_batch = max_batch
        self._wal_limit = wal_limit_bytes
        self._truncate_at = wal_limit_bytes // TRUNCATE_DIVISOR
        self._filling = _Filling(store.new_batch())
        self._full: _Filling | None = None  # is the next, before the one that is being filled
        self._held_over: Submission | None = None  # did not fit into either
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._appending = False
        self._upkeep: asyncio.Task[None] | None = None
        self._work_after = 0.0  # time.monotonic()

    async def run(self) -> None:
        """Return when the intake is closed and empty. Raises StorageFailed, or whatever a defect raises."""
        filler = asyncio.create_task(self._fill())
        filler.add_done_callback(lambda _: self._filled.set())
        batch: _Filling | None = None
        try:
            while batch := await self._next(filler):
                await self._fall_below_wal_limit()
                await self._store_batch(batch)
                batch = None
            await self._end_upkeep()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._stats.failure = str(error) or type(error).__name__
            self._refuse_all(batch)
            raise
        finally:
            tasks = [task for task in (filler, self._upkeep, self._full and self._full.deciding) if task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fill(self) -> None:
        """Pack what arrives into the batch that is to be next. A submission is never split, so one may be larger."""
        while submission := await self._intake.get():
            self._held_over = submission
            while not self._fits(submission):
                if not self._full:
                    self._set_aside()
                else:
                    self._room.clear()
                    await self._room.wait()
            self._held_over = None
            self._filling.add(submission)
            self._filled.set()

    def _fits(self, submission: Submission) -> bool:
        filling = self._filling
        return not filling.submissions or (
            len(filling.batch) + len(submission.events) <= self._max_batch
            and filling.batch.events.size_bytes + submission.size_bytes <= self._intake.max_bytes
        )

    def _set_aside(self) -> None:
        """Begin another batch; the full one is the next."""
        self._full, self._filling = self._filling, _Filling(self._store.new_batch())
        self._decide_full()

    def _decide_full(self) -> None:
        """Have the full batch decided behind the one that is being appended."""
        if self._appending and self._full and not self._full.deciding:
            self._full.deciding = asyncio.create_task(self._store.decide(self._full.batch))

    async def _next(self, filler: asyncio.Task[None]) -> _Filling | None:
        """The next batch; while there is none, do what is better done in quiet times."""
        while True:
            if self._upkeep and self._upkeep.done():
                await self._end_upkeep()
            if self._full or self._filling.submissions:
                break
            if filler.done():
                filler.result()
                return None
            quiet_s: float | None = None
            if self._stats.trouble:
                quiet_s = RETRY_S
            elif self._store.backlog_bytes or self._store.work_left or self._store.last_checkpoint.error:
                quiet_s = IDLE_S
            self._filled.clear()
            try:
                async with asyncio.timeout(quiet_s):
                    await self._filled.wait()
            except TimeoutError:
                await self._use_quiet_time()
        if self._full:
            batch, self._full = self._full, None
            if self._held_over and not self._fits(self._held_over):  # another is full
                self._set_aside()
        else:
            batch, self._filling = self._filling, _Filling(self._store.new_batch())
        self._room.set()
        self._intake.took(batch.submissions)
        return batch

    async def _use_quiet_time(self) -> None:
        await self._end_upkeep()
        if self._stats.trouble:
            await self._probe()
            return
        if self._store.backlog_bytes or self._store.last_checkpoint.error:
            await self._checkpoint()
        while self._store.work_left and not self._filled.is_set() and time.monotonic() >= self._work_after:
            await self._work(quiet=True)
            if self._checkpoint_due:
                await self._checkpoint()

    async def _work(self, quiet: bool) -> None:
        """Let the store put its keys in order. That it cannot, for want of space, harms nobody yet."""
        if time.monotonic() >= self._work_after:
            try:
                await self._store.work(quiet)
            except (StorageFull, StorageBusy) as error:
                log.debug("the keys are not being merged: %s", error)
                self._work_after = time.monotonic() + RETRY_S

    async def _store_batch(self, filling: _Filling) -> None:
        batch = filling.batch
        self._stats.commit_started = started = time.monotonic()
        try:
            first_seq = await self._append(filling)
        except StorageFull as error:
            self._in_trouble(str(error))
            self._refuse(filling.submissions, Failure("storage_full", str(error)))
            return
        finally:
            self._stats.commit_started = None
        self._out_of_trouble()
        duplicates = batch.duplicates
        self._stats.committed(len(batch) - len(duplicates), len(duplicates), time.monotonic() - started)
        # In the loop's next turn: if more is queued, it is on its way to the disk by then, and replies are written
        # while it commits.
        asyncio.get_running_loop().call_soon(_acknowledge, filling.submissions, first_seq, duplicates)

    async def _append(self, filling: _Filling) -> int:
        while True:
            try:
                if filling.deciding:
                    deciding, filling.deciding = filling.deciding, None
                    await deciding
                self._appending = True
                self._decide_full()
                self._begin_upkeep()
                return await self._store.append(filling.batch)
            except StorageBusy as error:
                self._in_trouble(str(error))
                await asyncio.sleep(RETRY_S)
            finally:
                self._appending = False

    def _begin_upkeep(self) -> None:
        """Have what is due done behind the batch that is being appended."""
        if not self._upkeep and (self._checkpoint_due or self._store.work_due):
            self._upkeep = asyncio.create_task(self._keep_up())
            self._upkeep.add_done_callback(lambda _: self._filled.set())

    async def _keep_up(self) -> None:
        if self._checkpoint_due:
            await self._checkpoint()
        await self._work(quiet=False)

    async def _end_upkeep(self) -> None:
        """Wait for it, and raise what it has raised."""
        if self._upkeep:
            await self._upkeep
            self._upkeep = None

    @property
    def _checkpoint_due(self) -> bool:
        last = self._store.last_checkpoint
        failed_just_now = last.error and time.monotonic() - last.ended < RETRY_S
        due = self._store.checkpoint_due or self._store.backlog_bytes > self._truncate_at
        return due and not failed_just_now

    async def _fall_below_wal_limit(self) -> None:
        while self._above_wal_limit:
            await self._end_upkeep()
            if self._above_wal_limit:
                self._in_trouble(f"the WAL has reached its limit: {self._store.last_checkpoint.error}")
                await asyncio.sleep(RETRY_S)
                await self._checkpoint()

    @property
    def _above_wal_limit(self) -> bool:
        # The file too: readers that always overlap keep a WAL that was copied from being used anew.
        return max(self._store.backlog_bytes, self._store.wal_bytes) > self._wal_limit

    async def _checkpoint(self) -> None:
        before = self._store.last_checkpoint.error
        await self._store.checkpoint(self._store.wal_bytes > self._truncate_at)
        error = self._store.last_checkpoint.error
        if error != before:
            log.log(logging.WARNING if error else logging.INFO, "checkpoint: %s", error or "complete again")

    async def _probe(self) -> None:
        try:
            await self._store.probe()
        except (StorageFull, StorageBusy) as error:
            self._in_trouble(str(error))
        else:
            self._out_of_trouble()

    def _in_trouble(self, reason: str) -> None:
        if self._stats.trouble != reason:
            log.error("events are not being stored: %s", reason)
        self._stats.trouble = reason

    def _out_of_trouble(self) -> None:
        if self._stats.trouble:
            log.info("events are being stored again")
        self._stats.trouble = None

    def _refuse_all(self, batch: _Filling | None) -> None:
        failure = Failure("storage", f"the store has failed: {self._stats.failure}")
        held_over = [self._held_over] if self._held_over else []
        full = self._full.submissions if self._full else []
        waiting = [*full, *self._filling.submissions, *held_over, *self._intake.drain()]
        self._intake.took(waiting)
        self._refuse([*(batch.submissions if batch else []), *waiting], failure)

    def _refuse(self, batch: list[Submission], failure: Failure) -> None:
        for submission in batch:
            self._stats.errors += len(submission.events)
            submission.settle(failure)


def _acknowledge(batch: list[Submission], first_seq: int, duplicates: dict[int, int]) -> None:
    offset = 0
    for submission in batch:
        submission.settle(Commit(first_seq + offset, duplicates, offset))
        offset += len(submission.events)
