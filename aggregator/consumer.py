"""The only task that writes: queue -> batch -> ``store.append`` -> replies, after the commit.

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
from collections.abc import Sequence
from typing import Final, Protocol

from aggregator.config import TRUNCATE_DIVISOR
from aggregator.event import Event
from aggregator.intake import Commit, Failure, Intake, Submission
from aggregator.stats import Stats
from aggregator.store import (
    CHECKPOINT_BYTES,
    IDLE_CHECKPOINT_BYTES,
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
    async def append(self, events: Sequence[Event]) -> tuple[int, dict[int, int]]: ...
    async def checkpoint(self, truncate: bool) -> None: ...
    async def probe(self) -> None: ...


class Consumer:
    """Moves submissions from the intake into the store until the intake is closed or the store fails."""

    def __init__(self, intake: Intake, store: Store, stats: Stats, max_batch: int, wal_limit_bytes: int) -> None:
        self._intake = intake
        self._store = store
        self._stats = stats
        self._max_batch = max_batch
        self._wal_limit = wal_limit_bytes
        self._truncate_at = wal_limit_bytes // TRUNCATE_DIVISOR

    async def run(self) -> None:
        """Return when the intake is closed and empty. Raises StorageFailed, or whatever a defect raises."""
        batch: list[Submission] = []
        try:
            while True:
                batch = await self._take()
                if not batch:
                    return
                await self._store_batch(batch)
                batch = []
                await self._checkpoint_if_due()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._stats.failure = str(error) or type(error).__name__
            await self._refuse_all(batch)
            raise

    async def _take(self) -> list[Submission]:
        """The next batch; while there is none, do what is better done in quiet times."""
        while True:
            quiet_s: float | None = None
            if self._stats.trouble:
                quiet_s = RETRY_S
            elif self._store.backlog_bytes or self._store.last_checkpoint.error:
                quiet_s = IDLE_S
            try:
                async with asyncio.timeout(quiet_s):
                    return await self._intake.take(self._max_batch)
            except TimeoutError:
                if self._stats.trouble:
                    await self._probe()
                else:
                    await self._checkpoint()

    async def _store_batch(self, batch: list[Submission]) -> None:
        events = [event for submission in batch for event in submission.events]
        self._stats.commit_started = started = time.monotonic()
        try:
            first_seq, duplicates = await self._append(events)
        except StorageFull as error:
            self._in_trouble(str(error))
            self._refuse(batch, Failure("storage_full", str(error)))
            return
        finally:
            self._stats.commit_started = None
        self._out_of_trouble()
        self._stats.committed(len(events) - len(duplicates), len(duplicates), time.monotonic() - started)
        # In the loop's next turn: if more is queued, it is on its way to the disk by then, and replies are written
        # while it commits.
        asyncio.get_running_loop().call_soon(_acknowledge, batch, first_seq, duplicates)

    async def _append(self, events: list[Event]) -> tuple[int, dict[int, int]]:
        while True:
            try:
                return await self._store.append(events)
            except StorageBusy as error:
                self._in_trouble(str(error))
                await asyncio.sleep(RETRY_S)

    async def _checkpoint_if_due(self) -> None:
        """Keep the WAL small: at once when no event waits for it, else only when it has grown large."""
        limit = min(CHECKPOINT_BYTES if self._intake.events else IDLE_CHECKPOINT_BYTES, self._truncate_at)
        last = self._store.last_checkpoint
        if last.error and time.monotonic() - last.ended < RETRY_S:
            limit = self._wal_limit
        if self._store.backlog_bytes > limit:
            await self._checkpoint()
        # The file too: readers that always overlap keep a WAL that was copied from being used anew.
        while max(self._store.backlog_bytes, self._store.wal_bytes) > self._wal_limit:
            self._in_trouble(f"the WAL has reached its limit: {self._store.last_checkpoint.error}")
            await asyncio.sleep(RETRY_S)
            await self._checkpoint()

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

    async def _refuse_all(self, batch: list[Submission]) -> None:
        failure = Failure("storage", f"the store has failed: {self._stats.failure}")
        self._refuse(batch, failure)
        while self._intake.events:
            self._refuse(await self._intake.take(self._max_batch), failure)

    def _refuse(self, batch: list[Submission], failure: Failure) -> None:
        for submission in batch:
            self._stats.errors += len(submission.events)
            submission.settle(failure)


def _acknowledge(batch: list[Submission], first_seq: int, duplicates: dict[int, int]) -> None:
    offset = 0
    for submission in batch:
        submission.settle(Commit(first_seq + offset, duplicates, offset))
        offset += len(submission.events)
