"""What the store does alongside the batches and in quiet times: checkpoints, postings, merging keys.

All of it can wait. Work that fails because there is no space, or because another program holds the write lock, does no
harm yet and is tried again later.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from typing import Final

from aggregator.storage.engine import StorageFailed
from aggregator.storage.sqlite import postings
from aggregator.storage.sqlite.database import storage_error
from aggregator.storage.sqlite.ledger import Ledger
from aggregator.storage.sqlite.postings import Postings
from aggregator.storage.sqlite.wal import Wal
from aggregator.storage.sqlite.writer import Writer

log = logging.getLogger("aggregator")

RETRY_S: Final = 0.5
"""Pause before work that has failed is tried again."""


class Upkeep:
    """The upkeep of one database."""

    def __init__(self, wal: Wal, ledger: Ledger, written: Postings, writer: Writer) -> None:
        self._wal = wal
        self._ledger = ledger
        self._postings = written
        self._writer = writer
        self._work_after = 0.0  # time.monotonic()

    @property
    def due(self) -> bool:
        """Whether something is due alongside the batches."""
        return self._wal.due or (self._may_work and (self._postings.due or self._ledger.work_due))

    @property
    def left(self) -> bool:
        """Whether there is something to do in quiet times. Work that has just failed counts: it must not be lost."""
        return self._wal.left or self._ledger.work_left

    @property
    def _may_work(self) -> bool:
        return time.monotonic() >= self._work_after

    async def run(self, quiet: bool) -> bool:
        """Do what is due or, in quiet times, a piece of what is left; return whether more is left that can be done.

        Raises StorageFailed.
        """
        more = self._may_work and self._ledger.work_left
        if self._wal.due or (quiet and self._wal.left and not more):  # merging adds to what has to be copied
            await self._wal.checkpoint()
        if self._may_work:
            try:
                await self._work(quiet)
            except sqlite3.Error as error:
                why = storage_error(error)
                if isinstance(why, StorageFailed):
                    raise why from error
                log.debug("postings and keys cannot be written now: %s", why)
                self._work_after = time.monotonic() + RETRY_S
        return more

    async def _work(self, quiet: bool) -> None:
        if self._postings.due:
            await self._postings.write()
            self._wal.posted(min(postings.DUE, self._writer.topics_total))  # about a page for each topic
        written_before = self._ledger.written_bytes
        try:
            await self._ledger.work(quiet)
        finally:
            self._wal.wrote_keys(self._ledger.written_bytes - written_before)
