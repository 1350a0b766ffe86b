"""The key ledger: under which seq each key was first stored, for ever, at a cost that hardly grows.

A log-structured merge tree in plain SQLite tables of (first KEY_BYTES of the key's digest, seq):

- The memtable has the newest keys, in memory. A start fills it again from the events past the last seq of any run.
- The keys of a batch are looked up after the statement that stores the previous batch. Nothing changes until the batch
  is stored, because this process is the only writer. The transaction that stores the events inserts their new keys into
  the memtable; it fails if a key is already there.
- A full memtable becomes a *run*, a table ``keys_N`` that never changes once it is complete. Its keys are copied a
  slice at a time, alongside the batches, while another memtable takes the new keys. After the last slice the run is
  named in ``runs``. A table that is not named there was left by a crash, and is dropped.
- FANOUT runs of a level are merged into one run of the next level in the same way. The runs being merged stay in use
  until the merge is complete, so a crash leaves nothing to repair: the next start goes on after the last key of the
  unfinished run.
- The connection runs one statement after the other, and each is a transaction. Only a statement that comes after the
  last look-up in a table may empty or drop it. So a look-up finds every key, whatever was done between the request for
  it and its execution.
- A key is looked for in the memtable, then in the run where a key was found last, because events that are sent again
  mostly keep their order, and then in the other runs from the newest on.

An index over random keys has to change about one page for every key. Here all writing is in the order of the keys, and
a key is written once for each level: three times at 32 million keys, four times at 268 million.
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from aggregator import json_text
from aggregator.event import DIGEST_BYTES, KEY_BYTES, digest
from aggregator.json_text import NotJson, TooDeep
from aggregator.storage.sqlite import block
from aggregator.storage.sqlite.database import Database
from aggregator.storage.sqlite.key_filter import ALL, KeyFilter
from aggregator.storage.sqlite.memtable import Memtable
from aggregator.storage.sqlite.schema import KEY_COLUMNS

FANOUT: Final = 8
"""How many runs of a level become one of the next. With more, keys are merged less often, but looked for in more
tables."""

SLICE_KEYS: Final = 2048
"""Fewest keys merged at a time: about 2 ms, of which the commit is a tenth."""

MAX_SLICE_KEYS: Final = 32 * 1024
"""Most keys merged at a time alongside the batches: about 20 ms."""

FILL_KEYS: Final = 1 << 17
"""How many keys are added to the filter at a time after a start. That takes some 40 ms, for which commits wait; but
until the filter has all keys, each event is looked for in every run."""

MERGE_PACE: Final = 2
"""How many keys may be merged for each new key: at twice the rate of new keys, a level never has much more than FANOUT
runs."""

FLUSH_PACE: Final = 8
"""The same for a memtable that becomes a run: the run is complete when the next memtable is an eighth full. A start has
to read the events of both again."""

MAX_TABLES: Final = 100
"""Most tables that one function or one merge is given; SQLite's limits are 127 and 500."""

KEY_ROW_BYTES: Final = 27
"""The size of a key in a run, on disk."""

_REFILL_BLOCKS = 64
"""How many blocks a start reads at a time: 4 MiB, or as many events if each is larger than a block."""


@dataclass(slots=True)
class Run:
    """A table of keys. The run that it is ``merging_into``, if any, is not searched yet."""

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
    """A run that is being made of the keys in ``sources``: other runs, or a memtable that takes no more keys.

    The run has all their keys up to ``done``, and may take ``budget`` more. Its table exists if ``created`` is true.
    """

    target: Run
    sources: Sequence[Run | Memtable]
    pace: int
    done: bytes = b""
    budget: int = 0
    created: bool = False


@dataclass(frozen=True, slots=True)
class LookUp:
    """A statement that looks for keys, and the keys in the order of its answer."""

    keys: list[bytes]
    sql: str
    parameters: dict[str, Any]

    @classmethod
    def of(cls, digests: Iterable[bytes], tables: tuple[str, ...]) -> LookUp:
        """Look for each of the keys with these digests, in one table after the other until one has it."""
        keys = sorted(set(digests))  # neighbours share pages: that halves the time
        positions = orjson.dumps(list(range(len(keys)))).decode()
        return cls(keys, _seqs_in(tables), {"digests": b"".join(keys), "positions": positions})

    def found(self, rows: Iterable[sqlite3.Row]) -> dict[bytes, int | None]:
        """The seqs of the keys in the answer; None for a key that was not found."""
        ((seqs,),) = rows
        return dict(zip(self.keys, orjson.loads(seqs), strict=True))


class Ledger:
    """The keys of one database. ``load`` must be called first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.filter = KeyFilter()
        self.written_bytes = 0
        """How much was written into the ledger's own tables since the ledger was opened."""
        self._memtable = Memtable(0)
        self._runs: list[Run] = []
        self._merges: list[_Merge] = []
        self._last_id = 0  # of any run, even one that is gone
        self._garbage: list[str] = []  # statements that drop or empty tables that are no longer searched
        self._expected: Run | None = None  # the run that is searched first
        self._run_tables: tuple[str, ...] = ()  # in the order in which they are searched

    async def load(self) -> None:
        """Find the runs, and fill the memtable."""
        rows = await self._database.write("SELECT id, level, keys, last_seq, merging_into FROM runs ORDER BY id")
        self._runs = [Run(*row) for row in rows]
        known = {run.id for run in self._runs}
        tables = await self._database.write("SELECT name FROM sqlite_schema WHERE name LIKE 'keys!_%' ESCAPE '!'")
        ids = {int(number[1]) for (name,) in tables if (number := re.fullmatch(r"keys_(\d+)", name))}
        self._last_id = max(known | ids, default=0)
        self._garbage = [_drop(id) for id in ids - known]
        for target in self._runs:
            if sources := [run for run in self._runs if run.merging_into == target.id]:
                merge = _Merge(target, sources, MERGE_PACE, created=target.id in ids)
                if merge.created:
                    ((done,),) = await self._database.write(f"SELECT max(key) FROM {target.table}")
                    merge.done = done or b""
                self._merges.append(merge)
        self._runs_changed()
        self.filter.known_below = 0 if self._runs else ALL
        await self._refill_memtable()
        self._freeze_if_full()

    async def _refill_memtable(self) -> None:
        known = max((run.last_seq for run in self._runs), default=0)
        while rows := await self._database.write(
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
            await self._database.write(self._memtable.insert, {"digests": digests, "seqs": orjson.dumps(seqs).decode()})
            self._memtable.add(digests, seqs, sum(len(row[-1]) for row in rows))

    def look_up(self, digests: Iterable[bytes]) -> LookUp:
        """A look-up of these keys, provided that it is the next statement of the connection that writes."""
        return LookUp.of(digests, tuple(one.table for one in self._memtables) + self._run_tables)

    async def seq_of(self, digest: bytes) -> int | None:
        """The seq under which a key is stored."""
        for memtable in self._memtables:
            if seq := memtable.seq_of(digest):
                return seq
        while True:
            runs = self._run_tables
            look_up = LookUp.of([digest], runs)
            try:
                rows = await self._database.reader.execute_fetchall(look_up.sql, look_up.parameters)
            except sqlite3.OperationalError as error:
                # Runs were merged during the look-up and their tables dropped, perhaps more often than SQLite tries
                # again by itself. If the runs were only put in another order, another attempt does no harm.
                if runs == self._run_tables and error.sqlite_errorcode != sqlite3.SQLITE_SCHEMA:
                    raise
            else:
                return look_up.found(rows)[digest]

    def stored(self, digests: bytes, seqs: Sequence[int], event_bytes: int) -> None:
        """Record the keys that are in the memtable now, and let the merges proceed accordingly."""
        self._memtable.add(digests, seqs, event_bytes)
        keys = len(seqs)
        for merge in self._merges:
            merge.budget = min(merge.budget + merge.pace * keys, max(MAX_SLICE_KEYS, MERGE_PACE * keys))
        self._freeze_if_full()

    @property
    def memtable(self) -> int:
        """The number of the memtable that takes new keys."""
        return self._memtable.number

    @property
    def _memtables(self) -> list[Memtable]:
        """The memtable that takes new keys, then the one that is becoming a run, if there is one."""
        frozen = [one for merge in self._merges for one in merge.sources if isinstance(one, Memtable)]
        return [self._memtable, *frozen]

    @property
    def run_count(self) -> int:
        """How many tables on disk are searched for a key."""
        return len(self._complete())

    @property
    def work_left(self) -> bool:
        """Whether there is something to do in quiet times."""
        return bool(self._merges or self._garbage or self.filter.known_below < ALL)

    @property
    def work_due(self) -> bool:
        """Whether there is something to do alongside the batches."""
        return bool(self._garbage or self.filter.known_below < ALL or any(map(_is_due, self._merges)))

    async def work(self, quiet: bool) -> None:
        """Do what is due alongside the batches or, in quiet times, a piece of what is left. Raises sqlite3.Error.

        A piece takes some milliseconds, and is committed or never happened.
        """
        if self._garbage:
            await self._clear()
            if quiet:
                return
        if self.filter.known_below < ALL:
            await self._fill_filter()
        for merge in list(self._merges):
            if quiet or _is_due(merge):
                await self._merge_slice(merge)
                if quiet:
                    break

    async def _clear(self) -> None:
        await self._database.write(self._garbage[0])
        del self._garbage[0]

    def _freeze_if_full(self) -> None:
        """Let a full memtable become a run, if there is an empty one to take its place.

        This must not happen while a batch is being stored, because the batch already names the memtable for its keys.
        """
        memtable = self._memtable
        other = memtable.other()
        if memtable.full and len(self._memtables) == 1 and _empty(other) not in self._garbage:
            self._memtable = other
            target = Run(self._next_id(), 1, len(memtable), memtable.last_seq)
            self._runs.append(target)
            # It comes first, because in quiet times one merge is finished after the other.
            self._merges.insert(0, _Merge(target, [memtable], FLUSH_PACE, budget=SLICE_KEYS))

    async def _start_merge(self, level: int) -> None:
        sources = [run for run in self._complete() if run.level == level and run.merging_into is None]
        sources = sources[:MAX_TABLES]
        if len(sources) < FANOUT or any(merge.target.level == level + 1 for merge in self._merges):
            return
        target = Run(self._next_id(), level + 1, sum(run.keys for run in sources), sources[-1].last_seq)
        await self._database.write(f"""
            REPLACE INTO runs
            SELECT id, level, keys, last_seq, {target.id} FROM runs WHERE id IN ({_list(sources)})
            UNION ALL VALUES {_row(target)}
        """)
        for run in sources:
            run.merging_into = target.id
        self._runs.append(target)
        self._merges.append(_Merge(target, sources, MERGE_PACE))

    async def _merge_slice(self, merge: _Merge) -> None:
        """Copy the next keys in order, as many as the budget allows on average."""
        if not merge.created:
            await self._database.write(f"CREATE TABLE {merge.target.table} {KEY_COLUMNS}")
            merge.created = True
        keys = max(SLICE_KEYS, merge.budget)
        first = int.from_bytes(merge.done[:4].ljust(4, b"\0"))
        end = first + max(1, (keys << 32) // max(1, merge.target.keys))
        last = end >= ALL
        below = b"\xff" * (KEY_BYTES + 1) if last else end.to_bytes(4)
        parts = " UNION ALL ".join(
            f"SELECT key, seq FROM {one.table} WHERE key > :done AND key < :below" for one in merge.sources
        )
        await self._database.write(
            f"INSERT INTO {merge.target.table} {parts} ORDER BY key", {"done": merge.done, "below": below}
        )
        self._wrote(keys)
        merge.budget = max(0, merge.budget - keys)  # a batch may have added to it during the write
        merge.done = below
        if last:
            await self._finish(merge)

    async def _finish(self, merge: _Merge) -> None:
        """Replace the sources by the target."""
        target = merge.target
        runs = [one for one in merge.sources if isinstance(one, Run)]
        if runs:
            await self._database.write(f"DELETE FROM runs WHERE id IN ({_list(runs)})")
        else:
            await self._database.write(f"INSERT INTO runs VALUES {_row(target)}")
        self._merges.remove(merge)
        self._garbage += [_drop(run.id) for run in runs]
        self._runs = [run for run in self._runs if run.merging_into != target.id]
        self._runs_changed()
        if not runs:
            self._garbage.insert(0, _empty(merge.sources[0]))
            await self._clear()  # now, because the next full memtable waits for that
        await self._start_merge(target.level - 1)
        await self._start_merge(target.level)

    async def _fill_filter(self) -> None:
        """Add the stored keys of the next slice to the filter."""
        complete = self._complete()
        total = sum(run.keys for run in complete)
        first = self.filter.known_below
        end = min(ALL, first + max(1, (FILL_KEYS << 32) // max(1, total)))
        below = b"\xff" * (KEY_BYTES + 1) if end == ALL else end.to_bytes(4)
        for run in complete:
            ((heads,),) = await self._database.write(
                f"SELECT group_concat(hex(substr(key, 1, 4)), '') FROM {run.table} WHERE key >= ? AND key < ?",
                (first.to_bytes(4), below),
            )
            self.filter.add_heads(bytes.fromhex(heads or ""))
        self.filter.known_below = end

    def _complete(self) -> list[Run]:
        growing = {merge.target.id for merge in self._merges}
        return [run for run in self._runs if run.id not in growing]

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def expect(self, seq: int) -> None:
        """Look for the next keys first in the run that has this seq, the seq of a duplicate.

        Events that are sent again mostly keep their order. Any duplicate of a batch will do: the more of the batch's
        duplicates a run has, the likelier it is that the given one is in that run.
        """
        if (run := self._run_of(seq)) is not self._expected:
            self._expected = run
            self._order_runs()

    def _run_of(self, seq: int) -> Run | None:
        return min((run for run in self._complete() if seq <= run.last_seq), key=lambda run: run.last_seq, default=None)

    def _runs_changed(self) -> None:
        if self._expected and self._expected not in self._runs:  # merged
            self._expected = self._run_of(self._expected.last_seq)
        self._order_runs()

    def _order_runs(self) -> None:
        # After the expected run the newest come first: events that are sent again were mostly sent a short time ago.
        order = sorted(self._complete(), key=lambda run: (run is not self._expected, -run.last_seq))
        self._run_tables = tuple(run.table for run in order)

    def _wrote(self, keys: int) -> None:
        self.written_bytes += keys * KEY_ROW_BYTES


@functools.lru_cache(maxsize=4)  # the tables rarely change
def _seqs_in(tables: tuple[str, ...]) -> str:
    """SQL for a JSON array: for each key its seq in the first of these tables that has the key, or null."""
    key = f"substr(:digests, {DIGEST_BYTES} * value + 1, {KEY_BYTES})"
    parts = [f"(SELECT seq FROM {table} WHERE key = {key})" for table in tables]
    groups = [", ".join(parts[start : start + MAX_TABLES]) for start in range(0, len(parts), MAX_TABLES)]
    seq = f"coalesce({', '.join(f'coalesce({group}, NULL)' for group in groups)}, NULL)" if tables else "NULL"
    return f"SELECT json_group_array({seq}) FROM json_each(:positions)"


def _is_due(merge: _Merge) -> bool:
    return merge.budget >= min(SLICE_KEYS, merge.target.keys)


def _list(runs: list[Run]) -> str:
    return ", ".join(str(run.id) for run in runs)


def _row(run: Run) -> str:
    return f"({run.id}, {run.level}, {run.keys}, {run.last_seq}, NULL)"


def _drop(id: int) -> str:
    return f"DROP TABLE keys_{id}"


def _empty(memtable: Run | Memtable) -> str:
    return f"DELETE FROM {memtable.table}"


def _keys(first_seq: int, topics: str, *row: Any) -> dict[bytes, int]:
    """The keys of a block's events, with their seqs."""
    try:
        names = orjson.loads(topics)
        found = block.events(first_seq, *row)
        return {digest(names[topic], json_text.decode(json)["event_id"]): seq for seq, topic, json in found}
    except (NotJson, TooDeep, ValueError, LookupError, TypeError, AttributeError) as error:
        # Without its key, an event of this block could be stored twice.
        raise sqlite3.DatabaseError(f"the block of event {first_seq} is damaged: {error}") from error
