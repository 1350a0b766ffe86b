"""Writes events: a batch is one statement, and the statement is the transaction.

- The statement is committed and fsynced (WAL, synchronous=FULL) when it ends, or it never happened. Which keys are new
  is decided beforehand; the statement inserts them into the ledger's memtable, where each key can be only once. No
  transaction takes several statements, because another statement could come in between.
- A batch is bound as a handful of parameters and runs as one step of SQLite, without Python's interpreter lock.
  ``executemany`` takes the lock for each row, and was measured to be 17 times slower next to a busy event loop.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from typing import Any, Final

import orjson

from aggregator.storage.sqlite import schema
from aggregator.storage.sqlite.batch import Batch, Decision, Packed, pack
from aggregator.storage.sqlite.database import Database
from aggregator.storage.sqlite.ledger import Ledger, LookUp

SEEN_TOPICS: Final = 10_000
"""How many topics are remembered as not new, so that not every batch has to ask the database how many are new."""

_NEW_TOPICS = "SELECT count(*) FROM json_each(?) WHERE value NOT IN (SELECT name FROM topics)"

_TOTALS = """
SELECT next_seq, stored, topics, store, coalesce(received_at, 0), coalesce(following, 1)
FROM totals LEFT JOIN (
    SELECT received_at, first_seq + json_array_length(ends) AS following FROM blocks ORDER BY first_seq DESC LIMIT 1
)
"""


class _Packing:
    """Packs one batch: at once, or when its turn has come, in SQLite's thread, after looking its keys up there.

    Nothing else touches the batch at that time. ``context`` has the parameters that only the writer knows.
    ``not_before`` is the time at which the previous batch was received.
    """

    def __init__(
        self,
        batch: Batch,
        first_seq: int,
        context: dict[str, int],
        not_before: int,
        look_up: LookUp | None = None,
    ) -> None:
        self._batch = batch
        self._first_seq = first_seq
        self._context = context
        self._not_before = not_before
        self._look_up = look_up
        self.packed: Packed | None = None

    def __call__(self, writer: sqlite3.Connection) -> dict[str, Any]:
        look_up = self._look_up
        found = look_up.found(writer.execute(look_up.sql, look_up.parameters)) if look_up and look_up.keys else {}
        return self.pack(self._batch.duplicates(self._first_seq, found))

    def pack(self, duplicates: Mapping[int, int]) -> dict[str, Any]:
        """Pack without these duplicates; return the parameters of the statement."""
        received_at = max(self._not_before, time.time_ns() // 1_000_000)  # the clock may have been set back
        self.packed = pack(self._batch.events, self._first_seq, duplicates, received_at)
        return self.packed.parameters | self._context


class Writer:
    """Appends to one database. ``load`` must be called first."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger
        self.stored_total = 0
        self.topics_total = 0
        self.store_id = ""
        self._next_seq = 1
        self._received_at = 0  # of the last batch; milliseconds since 1970, UTC
        self._upcoming_seq = 1  # the next seq once the batch that is being appended is stored
        self._handed_over = 0  # how often a batch was handed to SQLite, repeated attempts included
        self._seen_topics: set[str] = set()

    async def load(self) -> None:
        """Read the totals. A seq of a stored block is never handed out again, whatever the totals say."""
        totals = await self._database.write(_TOTALS)
        if not totals:
            raise sqlite3.DatabaseError("the row of its totals is missing")
        next_seq, self.stored_total, self.topics_total, self.store_id, self._received_at, following = totals[0]
        if next_seq < following:
            await self._database.write("UPDATE totals SET next_seq = ?", (following,))
        self._next_seq = self._upcoming_seq = max(next_seq, following)

    @property
    def head(self) -> int:
        """The highest seq that was handed out."""
        return self._next_seq - 1

    async def decide(self, batch: Batch) -> None:
        """Decide which events of a full batch are duplicates, provided that the batch being appended now is stored.

        ``append`` decides for a batch that has no decision, or whose decision is void. Raises sqlite3.Error.
        """
        first_seq, after = self._upcoming_seq, self._handed_over
        look_up = self._ledger.look_up(batch.maybe_stored)
        found = look_up.found(await self._database.write(look_up.sql, look_up.parameters))
        batch.decision = Decision(first_seq, batch.duplicates(first_seq, found), after)

    async def append(self, batch: Batch) -> Packed:
        """Store a batch durably, without its duplicates. Raises sqlite3.Error."""
        first_seq = self._next_seq
        topics = set(batch.events.topics)
        context = {"new_topics": await self._count_new(topics), "memtable": self._ledger.memtable}
        decision = batch.decision
        if decision and (decision.after, decision.first_seq) == (self._handed_over, first_seq):
            packing = _Packing(batch, first_seq, context, self._received_at)
            parameters: Any = packing.pack(decision.duplicates)
        else:  # no decision, or another batch was handed over since, or the batch before was not stored
            parameters = packing = _Packing(
                batch, first_seq, context, self._received_at, self._ledger.look_up(batch.maybe_stored)
            )
        self._upcoming_seq = first_seq + len(batch)
        self._handed_over += 1
        try:
            await self._database.write(schema.APPEND, parameters)
            self._next_seq = self._upcoming_seq
        finally:
            self._upcoming_seq = self._next_seq
        assert packing.packed
        self._received_at = packing.packed.commit.received_at
        self.stored_total += len(packing.packed.seqs)
        self.topics_total += context["new_topics"]
        self._remember(topics)
        return packing.packed

    async def _count_new(self, topics: set[str]) -> int:
        unseen = topics - self._seen_topics
        if not unseen:
            return 0
        ((count,),) = await self._database.write(_NEW_TOPICS, (orjson.dumps(list(unseen)).decode(),))
        return int(count)

    def _remember(self, topics: set[str]) -> None:
        if len(self._seen_topics) + len(topics) > SEEN_TOPICS:
            self._seen_topics.clear()
        self._seen_topics |= topics
