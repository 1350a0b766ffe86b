"""The key ledger: under which seq each key was first stored, for ever, at a cost that hardly grows.

A log-structured merge tree in plain SQLite tables of (first KEY_BYTES of the key's digest, seq):

- The memtable has the newest keys, in memory. It is filled again at a start from the events that came after
  ``totals.flushed_seq``.
- ``decide`` says which keys of a batch are stored, when the batch before is committed. Nothing changes until the batch
  is: this process is the only writer. The keys that it calls new are inserted into the memtable by the transaction that
  stores their events, which fails if one is there.
- When it is full it becomes a *run*, a table ``keys_N`` that is never changed again, a slice of the keys at a time,
  between batches, while another memtable takes the new ones. The last slice done, the run is named in ``runs``, in one
  transaction with ``flushed_seq``; one that is not named there is what a crash has left, and dropped.
- FANOUT runs of a level are merged into one run of the next level in the same way. The runs being merged stay in use
  until the merge is complete, so that a crash has nothing to repair: the next start goes on after the last key of the
  unfinished run.
- A key is looked for in the memtable, in the run where one was found last, for what is sent again mostly keeps its
  order, and in the others from the newest on.

An index over random keys has to change about one page for every key; here all writing is in the order of the keys,
and a key is written once for each level: three times at 32 million keys, four times at 268 million.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, Final

import aiosqlite
import orjson

from aggregator import block, event
from aggregator.batch import Batch
from aggregator.event import DIGEST_BYTES, KEY_BYTES, InvalidEvent
from aggregator.key_filter import ALL, KeyFilter
from aggregator.memtable import KEY_COLUMNS, Memtable

FANOUT: Final = 8
"""Runs of a level that become one of the next. With more, keys are merged less often, but looked for in more tables."""

SLICE_KEYS: Final = 2048
"""Fewest keys merged at a time: about 2 ms, of which the commit is a tenth."""

MAX_SLICE_KEYS: Final = 32 * 1024
"""Most keys merged at a time between two batches: about 20 ms."""

FILL_KEYS: Final = 1 << 17
"""Keys told to the filter at a time after a start: some 40 ms, which commits wait for; but until all are told each
event is looked for in every run."""

MERGE_PACE: Final = 2
"""Keys that may be merged for each new one: twice as fast as they come, a level never has much more than FANOUT
runs."""

FLUSH_PACE: Final = 8
"""The same for a memtable that becomes a run: it is one when the next is an eighth full. What is in both has to be read
again at a start."""

MAX_TABLES: Final = 100
"""Most tables that one function or one merge is given; SQLite's limits are 127 and 500."""

KEY_ROW_BYTES: Final = 27
"""What a key takes in a run, on disk."""

SCHEMA: Final = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,                -- of table keys_<id>; a higher one has newer keys, within a level
    level INTEGER NOT NULL,
    keys INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,             -- highest of its keys; the seqs of complete runs do not overlap
    merging_into INTEGER                   -- id of the run that will replace it
);
"""
_REFILL_BLOCKS = 64
"""Blocks read at a time at a start: 4 MiB, or so many events that are larger than a block."""


@dataclass(slots=True)
class Run:
    """A table of keys. While ``merging_into`` another run, that one is not looked into yet."""

    id: int
    level: int
    keys: int
    last_seq: int
    merging_into: int | None = None

    @property
    def table(self) -> str:
        return f"keys_{self.id}"


@dataclass(slots=True)
class _Merge:
    """A run that is being made of the keys in ``sources``, other runs or a memtable that takes no more.

    It has all their keys up to ``done``, and may take ``budget`` more.
    """

    target: Run
    sources: Sequence[Run | Memtable]
    pace: int
    done: bytes = b""
    budget: int = 0


class Ledger:
    """The keys of one database. ``load`` comes first.

    ``writer`` is its only read-write connection; through ``reader`` a key can be looked up while that is busy.
    """

    def __init__(self, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        self._writer = writer
        self._reader = reader
        self.filter = KeyFilter()
        self.written_bytes = 0
        """Of the ledger's own tables, since it was opened."""
        self._memtable = Memtable(0)
        self._runs: list[Run] = []
        self._merges: list[_Merge] = []
        self._garbage: list[int] = []  # tables of runs that have been merged
        self._expected: Run | None = None  # where a key is looked for first
        self._run_tables: tuple[str, ...] = ()  # in the order in which they are looked into

    async def load(self) -> None:
        """Find the runs, and fill the memtable."""
        rows = await self._writer.execute_fetchall(
            "SELECT id, level, keys, last_seq, merging_into FROM runs ORDER BY id"
        )
        self._runs = [Run(*row) for row in rows]
        known = {run.id for run in self._runs}
        tables = await self._writer.execute_fetchall(
            "SELECT name FROM sqlite_schema WHERE name LIKE 'keys!_%' ESCAPE '!'"
        )
        self._garbage = [int(number[1]) for (name,) in tables if (number := re.fullmatch(r"keys_(\d+)", name))]
        self._garbage = [id for id in self._garbage if id not in known]
        for target in self._runs:
            if sources := [run for run in self._runs if run.merging_into == target.id]:
                ((done,),) = await self._writer.execute_fetchall(f"SELECT max(key) FROM {target.table}")
                self._merges.append(_Merge(target, sources, MERGE_PACE, done or b""))
        self._runs_changed()
        self.filter.known_below = 0 if self._runs else ALL
        await self._refill_memtable()

    async def _refill_memtable(self) -> None:
        ((known,),) = await self._writer.execute_fetchall("SELECT flushed_seq FROM totals")
        while rows := await self._writer.execute_fetchall(
            "SELECT first_seq, topics, numbers, ends, data FROM blocks WHERE first_seq > ? ORDER BY first_seq"
            f" LIMIT {_REFILL_BLOCKS}",
            (known,),
        ):
            keys: dict[bytes, int] = {}
            for row in rows:
                keys |= _keys(*row)
                known = row[0]
            digests, seqs = b"".join(keys), list(keys.values())
            self.filter.maybe(digests, 0)
            await self._writer.execute_fetchall(
                self._memtable.insert, {"digests": digests, "seqs": orjson.dumps(seqs).decode()}
            )
            self.stored(digests, seqs, sum(len(row[-1]) for row in rows))

    async def decide(self, batch: Batch, first_seq: int) -> dict[int, int]:
        """Of each event whose key is stored, or comes before it in the batch: its position, and the seq that was first.

        Event ``i`` is to have seq ``first_seq + i``. The batches before have been committed. Raises sqlite3.Error.
        """
        if not batch.maybe:
            return {}
        digests = batch.events.digests
        memtables = tuple(one.table for one in self._memtables)
        seqs = await self._look_up({digests[position] for position in batch.maybe}, self._writer, memtables)
        self._expect(next(filter(None, seqs.values()), None))
        unknown = {digest for digest, seq in seqs.items() if seq is None}
        for position in compress(range(len(digests)), map(unknown.__contains__, digests)):
            seqs[digests[position]] = seqs[digests[position]] or first_seq + position  # of two in the batch, the first
        first = ((position, seqs[digests[position]]) for position in batch.maybe)
        return {position: seq for position, seq in first if seq and seq != first_seq + position}

    async def seq_of(self, digest: bytes) -> int | None:
        """The seq under which a key is stored."""
        for memtable in self._memtables:
            if seq := memtable.seq_of(digest):
                return seq
        return (await self._look_up({digest}, self._reader))[digest]

    async def _look_up(
        self, digests: set[bytes], connection: aiosqlite.Connection, memtables: tuple[str, ...] = ()
    ) -> dict[bytes, int | None]:
        """The seqs of keys, as these memtables and the runs have them."""
        in_order = sorted(digests)  # neighbours share their pages: that halves it
        positions = orjson.dumps(list(range(len(in_order)))).decode()
        while True:
            runs = self._run_tables
            try:
                ((seqs,),) = await connection.execute_fetchall(
                    _seqs_in(memtables + runs), {"digests": b"".join(in_order), "positions": positions}
                )
            except sqlite3.OperationalError as error:
                # Runs were merged meanwhile, and their tables dropped; or more often than SQLite tries again. That they
                # were only put in another order does no harm: it is tried once more.
                if runs == self._run_tables and error.sqlite_errorcode != sqlite3.SQLITE_SCHEMA:
                    raise
            else:
                return dict(zip(in_order, orjson.loads(seqs), strict=True))

    def stored(self, digests: bytes, seqs: Iterable[int], event_bytes: int) -> None:
        """Take note of the keys that are in the memtable now, and of what that lets be merged."""
        self._memtable.add(digests, seqs, event_bytes)
        keys = len(digests) // DIGEST_BYTES
        for merge in self._merges:
            merge.budget = min(merge.budget + merge.pace * keys, max(MAX_SLICE_KEYS, MERGE_PACE * keys))

    @property
    def memtable(self) -> int:
        """The number of the one that takes new keys."""
        return self._memtable.number

    @property
    def _memtables(self) -> list[Memtable]:
        """That one first, then the one that is becoming a run, if there is one."""
        frozen = [one for merge in self._merges for one in merge.sources if isinstance(one, Memtable)]
        return [self._memtable, *frozen]

    @property
    def run_count(self) -> int:
        """Tables on disk that a key is looked for in."""
        return len(self._complete())

    @property
    def work_left(self) -> bool:
        """Whether there is something to do in quiet times."""
        return bool(self._memtable.full or self._merges or self._garbage or self.filter.known_below < ALL)

    async def work(self, quiet: bool) -> None:
        """Do what is due between two batches, or in quiet times a piece of whatever is left. Raises sqlite3.Error.

        A piece takes some milliseconds, and is committed or never happened.
        """
        if self._memtable.full and len(self._memtables) == 1:
            await self._start_flush()
        elif self._garbage:
            await self._drop(self._garbage[-1])
        if self.filter.known_below < ALL:
            await self._fill_filter()
        for merge in list(self._merges):
            if quiet or merge.budget >= min(SLICE_KEYS, merge.target.keys):
                await self._merge_slice(merge)
                if quiet:
                    break

    async def _start_flush(self) -> None:
        memtable = self._memtable
        target = Run(self._next_id(), 1, len(memtable), memtable.last_seq)
        await self._transaction(f"CREATE TABLE {target.table} {KEY_COLUMNS};")
        self._memtable = memtable.other()
        self._runs.append(target)
        # The first, for in quiet times one is finished after the other.
        self._merges.insert(0, _Merge(target, [memtable], FLUSH_PACE, budget=SLICE_KEYS))

    async def _start_merge(self, level: int) -> None:
        sources = [run for run in self._complete() if run.level == level and run.merging_into is None]
        sources = sources[:MAX_TABLES]
        if len(sources) < FANOUT or any(merge.target.level == level + 1 for merge in self._merges):
            return
        target = Run(self._next_id(), level + 1, sum(run.keys for run in sources), sources[-1].last_seq)
        await self._transaction(f"""
            CREATE TABLE {target.table} {KEY_COLUMNS};
            INSERT INTO runs VALUES ({target.id}, {target.level}, {target.keys}, {target.last_seq}, NULL);
            UPDATE runs SET merging_into = {target.id} WHERE id IN ({_list(sources)});
        """)
        for run in sources:
            run.merging_into = target.id
        self._runs.append(target)
        self._merges.append(_Merge(target, sources, MERGE_PACE))

    async def _merge_slice(self, merge: _Merge) -> None:
        """Copy the next keys in order, as many as the budget allows on average."""
        keys = max(SLICE_KEYS, merge.budget)
        first = int.from_bytes(merge.done[:4].ljust(4, b"\0"))
        end = first + max(1, (keys << 32) // max(1, merge.target.keys))
        last = end >= ALL
        below = b"\xff" * (KEY_BYTES + 1) if last else end.to_bytes(4)
        parts = " UNION ALL ".join(
            f"SELECT key, seq FROM {one.table} WHERE key > :done AND key < :below" for one in merge.sources
        )
        await self._writer.execute_fetchall(
            f"INSERT INTO {merge.target.table} {parts} ORDER BY key", {"done": merge.done, "below": below}
        )
        self._wrote(keys)
        merge.budget = 0
        merge.done = below
        if last:
            await self._finish(merge)

    async def _finish(self, merge: _Merge) -> None:
        """Let the target take the place of its sources."""
        target = merge.target
        runs = [one for one in merge.sources if isinstance(one, Run)]
        if runs:
            await self._transaction(f"DELETE FROM runs WHERE id IN ({_list(runs)});")
        else:
            await self._transaction(f"""
                INSERT INTO runs VALUES ({target.id}, {target.level}, {target.keys}, {target.last_seq}, NULL);
                UPDATE totals SET flushed_seq = {target.last_seq};
                DELETE FROM {merge.sources[0].table};
            """)
        self._merges.remove(merge)
        self._garbage += [run.id for run in runs]
        self._runs = [run for run in self._runs if run.merging_into != target.id]
        self._runs_changed()
        await self._start_merge(target.level - 1)
        await self._start_merge(target.level)

    async def _drop(self, id: int) -> None:
        await self._writer.execute_fetchall(f"DROP TABLE keys_{id}")
        self._garbage.remove(id)

    async def _fill_filter(self) -> None:
        """Let the filter know the stored keys of the next slice."""
        complete = self._complete()
        total = sum(run.keys for run in complete)
        first = self.filter.known_below
        end = min(ALL, first + max(1, (FILL_KEYS << 32) // max(1, total)))
        below = b"\xff" * (KEY_BYTES + 1) if end == ALL else end.to_bytes(4)
        for run in complete:
            ((heads,),) = await self._writer.execute_fetchall(
                f"SELECT group_concat(hex(substr(key, 1, 4)), '') FROM {run.table} WHERE key >= ? AND key < ?",
                (first.to_bytes(4), below),
            )
            self.filter.add_heads(bytes.fromhex(heads or ""))
        self.filter.known_below = end

    def _complete(self) -> list[Run]:
        growing = {merge.target.id for merge in self._merges}
        return [run for run in self._runs if run.id not in growing]

    def _next_id(self) -> int:
        return max([run.id for run in self._runs] + self._garbage, default=0) + 1

    def _expect(self, found: int | None) -> None:
        """Look for the next keys first in the run of this seq: what is sent again mostly keeps its order.

        Any that was found in a batch will do: the more of them a run has, the likelier it is one of its own.
        """
        if found and (run := self._run_of(found)) is not self._expected:
            self._expected = run
            self._order_runs()

    def _run_of(self, seq: int) -> Run | None:
        return min((run for run in self._complete() if seq <= run.last_seq), key=lambda run: run.last_seq, default=None)

    def _runs_changed(self) -> None:
        if self._expected and self._expected not in self._runs:  # merged
            self._expected = self._run_of(self._expected.last_seq)
        self._order_runs()

    def _order_runs(self) -> None:
        # After the expected one the newest first: what is sent again was mostly sent a short time ago.
        order = sorted(self._complete(), key=lambda run: (run is not self._expected, -run.last_seq))
        self._run_tables = tuple(run.table for run in order)

    def _wrote(self, keys: int) -> None:
        self.written_bytes += keys * KEY_ROW_BYTES

    async def _transaction(self, statements: str) -> None:
        try:
            await self._writer.executescript(f"BEGIN IMMEDIATE; {statements} COMMIT")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                await self._writer.rollback()
            raise


@functools.lru_cache(maxsize=4)  # the tables change seldom
def _seqs_in(tables: tuple[str, ...]) -> str:
    """SQL for a JSON array: for each of the keys the seq that the first of these tables has, or null."""
    key = f"substr(:digests, {DIGEST_BYTES} * value + 1, {KEY_BYTES})"
    parts = [f"(SELECT seq FROM {table} WHERE key = {key})" for table in tables]
    groups = [", ".join(parts[start : start + MAX_TABLES]) for start in range(0, len(parts), MAX_TABLES)]
    seq = f"coalesce({', '.join(f'coalesce({group}, NULL)' for group in groups)}, NULL)" if tables else "NULL"
    return f"SELECT json_group_array({seq}) FROM json_each(:positions)"


def _list(runs: list[Run]) -> str:
    return ", ".join(str(run.id) for run in runs)


def _keys(first_seq: int, topics: str, *row: Any) -> dict[bytes, int]:
    """The keys of a block's events, with their seqs."""
    try:
        names = orjson.loads(topics)
        found = block.events(first_seq, *row)
        return {event.digest(names[topic], event.read_event_id(json)): seq for seq, topic, json in found}
    except (InvalidEvent, ValueError, LookupError, TypeError, AttributeError) as error:
        # Going on without its key would let it be stored twice.
        raise sqlite3.DatabaseError(f"the block of event {first_seq} is damaged: {error}") from error
