"""The key ledger: under which seq each key was first stored, for ever, at a cost that hardly grows.

A log-structured merge tree in plain SQLite tables of (first KEY_BYTES of the key's digest, seq):

- ``memtable`` has the newest keys, in memory. ``INSERT OR IGNORE`` into it, inside the transaction that stores the
  events, decides what is new. It is not durable and need not be: at a start it is filled again from the events that
  came after ``totals.flushed_seq``.
- When it is full it becomes a *run*, a table ``keys_N`` that is never changed again, in one transaction with
  ``flushed_seq``. SQLite copies it as it is, without looking at the keys.
- FANOUT runs of a level are merged into one run of the next level, a slice of the keys at a time, between batches. The
  runs being merged stay in use until the merge is complete, so that a crash has nothing to repair: the next start goes
  on after the last key of the unfinished run.

An index over random keys has to change about one page for every key; here all writing is in the order of the keys,
and a key is written once for each level: three times at 32 million keys, four times at 268 million.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from dataclasses import dataclass, field
from typing import Final

import aiosqlite

from aggregator import event
from aggregator.event import KEY_BYTES, InvalidEvent
from aggregator.key_filter import ALL, KeyFilter

MEMTABLE_KEYS: Final = 1 << 16
"""Keys in the memtable when it becomes a run: 3 MiB, so that it stays in a processor's cache. Four times as many
made inserting twice as slow."""

MEMTABLE_EVENT_BYTES: Final = 64 << 20
"""The same limit for large events: what a start has to read again at most."""

FANOUT: Final = 8
"""Runs of a level that become one of the next. With more, keys are merged less often, but looked for in more tables."""

SLICE_KEYS: Final = 2048
"""Fewest keys merged at a time: about 2 ms, of which the commit is a tenth."""

MAX_SLICE_KEYS: Final = 32 * 1024
"""Most keys merged at a time between two batches: about 20 ms."""

FILL_KEYS: Final = 1 << 17
"""Keys told to the filter at a time after a start: some 40 ms, which commits wait for; but until all are told each
event is looked for in every run."""

MAX_TABLES: Final = 100
"""Most tables that one function or one merge is given; SQLite's limits are 127 and 500."""

KEY_ROW_BYTES: Final = 27
"""What a key takes in a run, on disk."""

SCHEMA: Final = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,                -- of table keys_<id>; a higher one has newer keys, within a level
    level INTEGER NOT NULL,
    keys INTEGER NOT NULL,
    merging_into INTEGER                   -- id of the run that will replace it
);
"""
_COLUMNS = "(key BLOB PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID"

TEMPORARY_SCHEMA: Final = f"""
CREATE TEMP TABLE memtable {_COLUMNS};
-- The events of a batch that the filter cannot call new: the seq under which the key is stored, or NULL.
CREATE TEMP TABLE known (position INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, seq INTEGER);
"""

_REFILL_ROWS = 1024
"""Events read at a time at a start; together they have at most MEMTABLE_EVENT_BYTES and a batch."""


@dataclass(slots=True)
class Run:
    """A table of keys. While ``merging_into`` another run, that one is not looked into yet."""

    id: int
    level: int
    keys: int
    merging_into: int | None = None


@dataclass(slots=True)
class _Merge:
    """A run that is being made of ``sources``: it has all their keys up to ``done``, and may take ``budget`` more."""

    target: Run
    sources: list[Run]
    done: bytes
    budget: int = field(default=0)


class Ledger:
    """The keys of one database, through its only read-write connection. ``load`` comes first."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self.filter = KeyFilter()
        self.written_bytes = 0
        """Of the ledger's own tables, since it was opened."""
        self._memtable_keys = 0
        self._memtable_event_bytes = 0
        self._runs: list[Run] = []
        self._merges: list[_Merge] = []
        self._garbage: list[int] = []  # tables of runs that have been merged
        self._seq_of = ""
        self._moving = asyncio.Lock()  # keys from the memtable into a run that ``_seq_of`` does not know yet

    async def load(self) -> None:
        """Find the runs, and fill the memtable."""
        connection = self._connection
        rows = await connection.execute_fetchall("SELECT id, level, keys, merging_into FROM runs ORDER BY id")
        self._runs = [Run(*row) for row in rows]
        known = {run.id for run in self._runs}
        tables = await connection.execute_fetchall(
            "SELECT name FROM sqlite_schema WHERE name LIKE 'keys!_%' ESCAPE '!'"
        )
        self._garbage = [int(number[1]) for (name,) in tables if (number := re.fullmatch(r"keys_(\d+)", name))]
        self._garbage = [id for id in self._garbage if id not in known]
        for target in self._runs:
            if sources := [run for run in self._runs if run.merging_into == target.id]:
                ((done,),) = await connection.execute_fetchall(f"SELECT max(key) FROM keys_{target.id}")
                self._merges.append(_Merge(target, sources, done or b""))
        self._runs_changed()
        self.filter.known_below = 0 if self._runs else ALL
        await self._refill_memtable()

    async def _refill_memtable(self) -> None:
        ((seq,),) = await self._connection.execute_fetchall("SELECT flushed_seq FROM totals")
        while rows := await self._connection.execute_fetchall(
            "SELECT seq, name, CAST(json AS BLOB) FROM events JOIN topics ON topics.id = events.topic"
            f" WHERE seq > {seq} ORDER BY seq LIMIT {_REFILL_ROWS}"
        ):
            digests = [_digest(*row) for row in rows]
            seqs = [row[0] for row in rows]
            self.filter.split(b"".join(digests), 0, [], [])
            await self._connection.executemany(
                "INSERT INTO memtable VALUES (?, ?)",
                [(digest[:KEY_BYTES], seq) for digest, seq in zip(digests, seqs, strict=True)],
            )
            self.stored(len(seqs), sum(len(json) for _, _, json in rows))
            seq = seqs[-1]

    def look_up_statement(self) -> str:
        """Fills ``known`` for the positions in the JSON array ``:maybe``, of the digests in ``:digests``."""
        key = f"substr(:digests, 32 * value + 1, {KEY_BYTES})"
        return f"INSERT OR REPLACE INTO known SELECT value, :attempt, {self._seq_of.format(key)} FROM json_each(:maybe)"

    async def seq_of(self, digest: bytes) -> int | None:
        """The seq under which a key is stored."""
        async with self._moving:
            rows = await self._connection.execute_fetchall(
                f"SELECT {self._seq_of.format(':key')}", {"key": digest[:KEY_BYTES]}
            )
        seq: int | None
        ((seq,),) = rows
        return seq

    def stored(self, keys: int, event_bytes: int) -> None:
        """Take note of what a batch has added to the memtable, and of what that lets be merged."""
        self._memtable_keys += keys
        self._memtable_event_bytes += event_bytes
        for merge in self._merges:
            # Twice as fast as new keys come, a level never has much more than FANOUT runs.
            merge.budget = min(merge.budget + 2 * keys, max(MAX_SLICE_KEYS, 2 * keys))

    @property
    def run_count(self) -> int:
        """Tables on disk that a key is looked for in."""
        return len(self._complete())

    @property
    def work_left(self) -> bool:
        """Whether there is something to do in quiet times."""
        return bool(self._merges or self._garbage or self.filter.known_below < ALL)

    async def work(self, quiet: bool) -> None:
        """Do what is due between two batches, or in quiet times a piece of whatever is left. Raises sqlite3.Error.

        A piece takes some milliseconds, and is committed or never happened.
        """
        if self._memtable_keys >= MEMTABLE_KEYS or self._memtable_event_bytes >= MEMTABLE_EVENT_BYTES:
            await self._flush()
        elif self._garbage:
            await self._drop(self._garbage[-1])
        if self.filter.known_below < ALL:
            await self._fill_filter()
        for merge in list(self._merges):
            if quiet or merge.budget >= min(SLICE_KEYS, merge.target.keys):
                await self._merge_slice(merge)
                if quiet:
                    break

    async def _flush(self) -> None:
        run = Run(self._next_id(), 1, self._memtable_keys)
        async with self._moving:
            await self._transaction(f"""
                CREATE TABLE keys_{run.id} {_COLUMNS};
                INSERT INTO keys_{run.id} SELECT * FROM memtable;
                DELETE FROM memtable;
                INSERT INTO runs VALUES ({run.id}, {run.level}, {run.keys}, NULL);
                UPDATE totals SET flushed_seq = next_seq - 1;
            """)
            self._runs.append(run)
            self._runs_changed()
        self._wrote(run.keys)
        self._memtable_keys = self._memtable_event_bytes = 0
        await self._start_merge(run.level)

    async def _start_merge(self, level: int) -> None:
        sources = [run for run in self._complete() if run.level == level and run.merging_into is None]
        sources = sources[:MAX_TABLES]
        if len(sources) < FANOUT or any(merge.target.level == level + 1 for merge in self._merges):
            return
        target = Run(self._next_id(), level + 1, sum(run.keys for run in sources))
        await self._transaction(f"""
            CREATE TABLE keys_{target.id} {_COLUMNS};
            INSERT INTO runs VALUES ({target.id}, {target.level}, {target.keys}, NULL);
            UPDATE runs SET merging_into = {target.id} WHERE id IN ({_list(sources)});
        """)
        for run in sources:
            run.merging_into = target.id
        self._runs.append(target)
        self._merges.append(_Merge(target, sources, b""))

    async def _merge_slice(self, merge: _Merge) -> None:
        """Copy the next keys in order, as many as the budget allows on average."""
        keys = max(SLICE_KEYS, merge.budget)
        first = int.from_bytes(merge.done[:4].ljust(4, b"\0"))
        end = first + max(1, (keys << 32) // max(1, merge.target.keys))
        last = end >= ALL
        below = b"\xff" * (KEY_BYTES + 1) if last else end.to_bytes(4)
        parts = " UNION ALL ".join(
            f"SELECT key, seq FROM keys_{run.id} WHERE key > :done AND key < :below" for run in merge.sources
        )
        await self._connection.execute_fetchall(
            f"INSERT INTO keys_{merge.target.id} {parts} ORDER BY key", {"done": merge.done, "below": below}
        )
        self._wrote(keys)
        merge.budget = 0
        merge.done = below
        if last:
            await self._finish_merge(merge)

    async def _finish_merge(self, merge: _Merge) -> None:
        await self._transaction(f"DELETE FROM runs WHERE id IN ({_list(merge.sources)});")
        self._merges.remove(merge)
        self._garbage += [run.id for run in merge.sources]
        self._runs = [run for run in self._runs if run.merging_into != merge.target.id]
        self._runs_changed()
        await self._start_merge(merge.target.level - 1)
        await self._start_merge(merge.target.level)

    async def _drop(self, id: int) -> None:
        await self._connection.execute_fetchall(f"DROP TABLE keys_{id}")
        self._garbage.remove(id)

    async def _fill_filter(self) -> None:
        """Let the filter know the stored keys of the next slice."""
        complete = self._complete()
        total = sum(run.keys for run in complete)
        first = self.filter.known_below
        end = min(ALL, first + max(1, (FILL_KEYS << 32) // max(1, total)))
        below = b"\xff" * (KEY_BYTES + 1) if end == ALL else end.to_bytes(4)
        for run in complete:
            ((heads,),) = await self._connection.execute_fetchall(
                f"SELECT group_concat(hex(substr(key, 1, 4)), '') FROM keys_{run.id} WHERE key >= ? AND key < ?",
                (first.to_bytes(4), below),
            )
            self.filter.add_heads(bytes.fromhex(heads or ""))
        self.filter.known_below = end

    def _complete(self) -> list[Run]:
        growing = {merge.target.id for merge in self._merges}
        return [run for run in self._runs if run.id not in growing]

    def _next_id(self) -> int:
        return max([run.id for run in self._runs] + self._garbage, default=0) + 1

    def _runs_changed(self) -> None:
        # Newest keys first: what is sent again was mostly sent a short time ago.
        tables = ["memtable"] + [f"keys_{run.id}" for run in sorted(self._complete(), key=lambda run: -run.id)]
        parts = [f"(SELECT seq FROM {table} WHERE key = {{0}})" for table in tables]
        groups = [", ".join(parts[start : start + MAX_TABLES]) for start in range(0, len(parts), MAX_TABLES)]
        self._seq_of = f"coalesce({', '.join(f'coalesce({group}, NULL)' for group in groups)}, NULL)"

    def _wrote(self, keys: int) -> None:
        self.written_bytes += keys * KEY_ROW_BYTES

    async def _transaction(self, statements: str) -> None:
        try:
            await self._connection.executescript(f"BEGIN IMMEDIATE; {statements} COMMIT")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                await self._connection.rollback()
            raise


def _list(runs: list[Run]) -> str:
    return ", ".join(str(run.id) for run in runs)


def _digest(seq: int, topic: str, json: bytes) -> bytes:
    try:
        return event.digest(topic, event.read_event_id(json))
    except (InvalidEvent, LookupError, TypeError, AttributeError) as error:
        # Going on without its key would let it be stored twice.
        raise sqlite3.DatabaseError(f"event {seq} is damaged: {error}") from error
