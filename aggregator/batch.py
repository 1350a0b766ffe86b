"""What one transaction stores: events, packed as the parameters of one statement while they arrive.

Packing takes the event loop about as long as SQLite's thread needs for a third of the batch; it is done while the
batch before commits, so that SQLite never waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

import orjson

from aggregator.event import Event
from aggregator.key_filter import KeyFilter

LENGTH_BITS: Final = 29
"""A span is one number: where an event's JSON starts, and in so many lower bits how long it is (below 512 MiB)."""

NUMBER_DIGITS: Final = 8
"""The number of an event's topic in the batch, as decimal text of this width: SQLite cuts it out of one long text."""


class _TopicNumbers(dict[str, bytes]):
    """A number for each topic, given out as they are asked for."""

    def __missing__(self, topic: str) -> bytes:
        number = self[topic] = b"%0*d" % (NUMBER_DIGITS, len(self))
        return number


class Batch:
    """Events in the order in which they came. ``new`` and ``maybe`` hold positions: what the filter says of each."""

    def __init__(self, keys: KeyFilter) -> None:
        self._filter = keys
        self._digests: list[bytes] = []
        self._json: list[bytes] = []
        self._numbers: list[bytes] = []
        self._number_of = _TopicNumbers()
        self._size_bytes = 0
        self.new: list[int] = []
        self.maybe: list[int] = []

    def __len__(self) -> int:
        return len(self._json)

    def add(self, events: Sequence[Event]) -> None:
        """Take one event or more. Their keys are in the filter from now on."""
        topics, _, json, digests = zip(*events, strict=True)
        joined = b"".join(digests)
        self._filter.split(joined, len(self._json), self.new, self.maybe)
        self._digests.append(joined)
        self._json += json
        self._size_bytes += sum(map(len, json))
        self._numbers += map(self._number_of.__getitem__, topics)

    @property
    def topics(self) -> list[str]:
        """The distinct topics, in the order of their numbers."""
        return list(self._number_of)

    @property
    def size_bytes(self) -> int:
        """The length of all events' JSON."""
        return self._size_bytes

    @property
    def digests(self) -> bytes:
        """For each event the 32 bytes of its key's digest."""
        return b"".join(self._digests)

    def parameters(self, attempt: int, first_seq: int, received_at: int) -> dict[str, Any]:
        """The columns of the view that the append statement inserts into.

        - ``attempt``: a number of its own for each append
        - ``first_seq``, ``next_seq``: event ``i`` is to have seq ``first_seq + i``
        - ``received_at``: milliseconds since 1970, UTC
        - ``topics``: JSON array of the distinct topics, which makes their numbers
        - ``numbers``: for each event the number of its topic, in NUMBER_DIGITS digits
        - ``digests``: for each event 32 bytes
        - ``new``, ``new_count``: JSON array of the positions that the filter calls new
        - ``maybe_count``: how many others there are
        - ``spans``: JSON array, for each event where its JSON lies in ``data``: ``start << LENGTH_BITS | length``
        - ``data``: the JSON of all events, end to end
        """
        lengths = list(map(len, self._json))
        starts = accumulate(lengths, initial=1)  # as SQL counts
        spans = [start << LENGTH_BITS | length for start, length in zip(starts, lengths, strict=False)]
        return {
            "attempt": attempt,
            "first_seq": first_seq,
            "next_seq": first_seq + len(lengths),
            "received_at": received_at,
            "topics": orjson.dumps(self.topics).decode(),
            "numbers": b"".join(self._numbers),
            "digests": self.digests,
            "new": orjson.dumps(self.new).decode(),
            "new_count": len(self.new),
            "maybe_count": len(self.maybe),
            "spans": orjson.dumps(spans).decode(),
            "data": b"".join(self._json),
        }
