"""The write-ahead log: how much of it is not in the database yet, when to copy it there, and when it is too large.

Checkpoints are run here, because a failing automatic checkpoint is silent while the WAL grows.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from dataclasses import dataclass
from typing import Final

from aggregator.storage.engine import StorageBusy
from aggregator.storage.sqlite.database import PAGE_BYTES, WAL_FILE_BYTES, Database

log = logging.getLogger("aggregator")

CHECKPOINT_BYTES: Final = 3 << 20
"""The WAL is copied into the database when there is about this much to copy: some 10 ms, for which commits wait. More
shows in the 99th percentile of the ack latency. With 2 MiB a checkpoint followed each batch under full load, and
throughput was a tenth lower."""

BACKLOG_BYTES: Final = 32 << 20
"""The same limit for the WAL itself, in which many small commits repeat the pages that they all change."""

COMMIT_PAGES: Final = 5
"""Pages that any commit changes, besides those that its events fill."""

TRUNCATE_DIVISOR: Final = 4
"""A WAL file larger than its limit divided by this is cut at the next checkpoint. That checkpoint waits for readers,
because readers that always overlap would keep SQLite from ever restarting the WAL."""

RETRY_S: Final = 0.5
"""Pause before a failed checkpoint is tried again."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How the last attempt to copy the WAL into the database went."""

    ended: float  # time.monotonic()
    error: str | None


class Wal:
    """The WAL of one database. Above ``limit_bytes`` nothing may be appended until a checkpoint succeeds."""

    def __init__(self, database: Database, limit_bytes: int) -> None:
        self._database = database
        self._limit_bytes = limit_bytes
        self._truncate_at = limit_bytes // TRUNCATE_DIVISOR
        self._backlog_bytes = database.wal_bytes  # estimate: SQLite tells only at a checkpoint
        self._to_copy_bytes = 0  # about the size of the distinct pages in the backlog
        self.last = Checkpoint(time.monotonic(), None)

    def committed(self, event_bytes: int) -> None:
        """Record a batch. Besides its events, a commit changes a few pages, mostly those of the previous commit."""
        self._to_copy_bytes += event_bytes
        self._backlog_bytes += event_bytes + COMMIT_PAGES * PAGE_BYTES

    def posted(self, pages: int) -> None:
        """Record postings, which many commits write into the same pages."""
        self._backlog_bytes += pages * PAGE_BYTES

    def wrote_keys(self, size_bytes: int) -> None:
        """Record how much the ledger has written into its own tables."""
        self._to_copy_bytes += size_bytes
        self._backlog_bytes += size_bytes

    @property
    def age_s(self) -> float:
        """Time since the last attempt to checkpoint, or since the database was opened."""
        return time.monotonic() - self.last.ended

    @property
    def too_large(self) -> str | None:
        """Why nothing may be appended; None if it may.

        The size of the file counts too: readers that always overlap keep SQLite from restarting a WAL that was copied.
        """
        if max(self._backlog_bytes, self._database.wal_bytes) <= self._limit_bytes:
            return None
        return f"the WAL has reached its limit: {self.last.error or 'a checkpoint is due'}"

    @property
    def due(self) -> bool:
        """Whether there is enough to be copied into the database."""
        enough = self._to_copy_bytes > CHECKPOINT_BYTES or self._backlog_bytes > min(BACKLOG_BYTES, self._truncate_at)
        return enough and not self._failed_just_now

    @property
    def left(self) -> bool:
        """Whether there is anything to be copied, or a failed attempt to be repeated."""
        return bool(self._backlog_bytes or self.last.error)

    @property
    def _failed_just_now(self) -> bool:
        return bool(self.last.error) and self.age_s < RETRY_S

    async def make_room(self) -> None:
        """Raise StorageBusy if nothing may be appended, unless a checkpoint changes that."""
        reason = self.too_large
        if reason and not self._failed_just_now:
            await self.checkpoint()
            reason = self.too_large
        if reason:
            raise StorageBusy(reason)

    async def checkpoint(self) -> None:
        """Copy the WAL into the database. If its file is large, cut the file too, which waits for readers.

        A failure loses nothing: it is shown in ``last``, logged when it begins and ends, and tried again.
        """
        before = self.last.error
        mode = "TRUNCATE" if self._database.wal_bytes > self._truncate_at else "PASSIVE"
        try:
            blocked, in_wal, copied = (await self._database.write(f"PRAGMA wal_checkpoint({mode})"))[0]
        except sqlite3.Error as error:
            self._database.distrust_cache()
            self.last = Checkpoint(time.monotonic(), str(error))
        else:
            if in_wal >= 0:  # otherwise another program is running a checkpoint, and nothing was done
                self._backlog_bytes = (in_wal - copied) * PAGE_BYTES
                self._to_copy_bytes = 0
            held_up = blocked or self._backlog_bytes > WAL_FILE_BYTES
            self.last = Checkpoint(time.monotonic(), "another program is reading" if held_up else None)
        if self.last.error != before:
            level = logging.WARNING if self.last.error else logging.INFO
            log.log(level, "checkpoint: %s", self.last.error or "complete again")
