"""The newest keys: a temporary table of SQLite, which keeps them in order and takes each key only once.

There are two such tables: while the keys of one are being written to a run, new keys go into the other. They are not
durable and need not be: a start fills one again from the events whose keys are in no run.

Only the connection that writes sees these tables, and a command that asks for an event must not wait for that
connection. So this module keeps the keys a second time, in the order in which they came.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final

from aggregator.event import DIGEST_BYTES
from aggregator.storage.sqlite import schema

MEMTABLE_KEYS: Final = 1 << 16
"""How many keys a memtable has when it becomes a run: 3 MiB, so that it stays in a processor's cache. Four times as
many made inserting twice as slow."""

MEMTABLE_EVENT_BYTES: Final = 64 << 20
"""The same limit for large events: about as much as a start has to read again, or an eighth more while a memtable
becomes a run."""


class Memtable:
    """One of the two tables, and a copy of what was inserted into it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.table = f"memtable_{number}"
        self.insert = schema.insert_keys(number, ":")
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
        """The highest seq. The memtable must not be empty."""
        return self._seqs[-1]

    def add(self, digests: bytes, seqs: Iterable[int], event_bytes: int) -> None:
        """Record keys that the table has now, with their ascending seqs, and the total length of their events."""
        self._digests += digests
        self._seqs.extend(seqs)
        self._event_bytes += event_bytes

    def seq_of(self, digest: bytes) -> int | None:
        """The seq of a key. This searches up to 2 MiB, so it is only for people who ask for an event."""
        place = self._digests.find(digest)  # a digest is too random to be found across two others
        return None if place < 0 else self._seqs[place // DIGEST_BYTES]

    def other(self) -> Memtable:
        """An empty memtable, in the other table."""
        return Memtable(1 - self.number)
