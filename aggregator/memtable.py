"""The newest keys: a temporary table of SQLite's, which has them in order, and takes each only once.

There are two such tables, for while the keys of the one are being written to a run, new keys go into the other. They
are not durable and need not be: at a start one is filled again from the events whose keys are in no run.

Only the connection that writes sees them, and whoever asks for an event is not to wait for it; so the keys are here
once more, as they came.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final

from aggregator.event import DIGEST_BYTES, KEY_BYTES

MEMTABLE_KEYS: Final = 1 << 16
"""Keys in a memtable when it becomes a run: 3 MiB, so that it stays in a processor's cache. Four times as many made
inserting twice as slow."""

MEMTABLE_EVENT_BYTES: Final = 64 << 20
"""The same limit for large events: about what a start has to read again, or an eighth more while a memtable becomes a
run."""

KEY_COLUMNS: Final = "(key BLOB PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID"

TEMPORARY_SCHEMA: Final = "".join(f"CREATE TEMP TABLE memtable_{number} {KEY_COLUMNS};\n" for number in range(2))


def _insert(number: int, values: str) -> str:
    """SQL that inserts keys: their ``digests``, and a JSON array ``seqs``, both with ``values`` before their names."""
    return (
        f"INSERT INTO memtable_{number} SELECT substr({values}digests, {DIGEST_BYTES} * key + 1, {KEY_BYTES}), value"
        f" FROM json_each({values}seqs)"
    )


# What a trigger does, where NEW.memtable says which of the two.
TRIGGERED_INSERT: Final = "".join(f"{_insert(number, 'NEW.')} WHERE NEW.memtable = {number};\n" for number in range(2))


class Memtable:
    """One of the two, and what was inserted into it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.table = f"memtable_{number}"
        self.insert = _insert(number, ":")
        self._digests = bytearray()
        self._seqs = array("Q")
        self._event_bytes = 0

    def __len__(self) -> int:
        return len(self._seqs)

    @property
    def full(self) -> bool:
        return len(self) >= MEMTABLE_KEYS or self._event_bytes >= MEMTABLE_EVENT_BYTES

    @property
    def last_seq(self) -> int:
        """The highest. There has to be one."""
        return self._seqs[-1]

    def add(self, digests: bytes, seqs: Iterable[int], event_bytes: int) -> None:
        """Take note of keys that the table has now, with the rising seqs of events of so many bytes together."""
        self._digests += digests
        self._seqs.extend(seqs)
        self._event_bytes += event_bytes

    def seq_of(self, digest: bytes) -> int | None:
        """The seq of a key. Looks through up to 2 MiB: it is for people who ask for an event."""
        place = self._digests.find(digest)  # so many random bytes are nowhere but where they start
        return None if place < 0 else self._seqs[place // DIGEST_BYTES]

    def other(self) -> Memtable:
        """An empty one, in the other table."""
        return Memtable(1 - self.number)
