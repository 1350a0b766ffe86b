"""What one transaction stores: events as they arrive, then the parameters of one statement.

The first part is done while the batch before commits. The second waits for it, for only then is it known which keys
are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any

import orjson

from aggregator import block
from aggregator.event import Events
from aggregator.key_filter import KeyFilter


class Batch:
    """Events in the order in which they came."""

    def __init__(self, keys: KeyFilter) -> None:
        self._filter = keys
        self.events = Events()
        self.maybe: list[int] = []
        """Positions of the events that the filter does not call new. The other keys are nowhere, and differ."""
        self.first_seq = 0
        """What the first event is to have, once it is decided which are ``duplicates``."""
        self.duplicates: dict[int, int] = {}
        """The older seqs of events whose keys are stored, or come before them, by position."""
        self.decided_after: int | None = None
        """How many batches had been handed to SQLite by then, stored or not."""

    def __len__(self) -> int:
        return len(self.events)

    def add(self, events: Events) -> None:
        """Take more events. Their keys are in the filter from now on."""
        self.maybe += self._filter.maybe(b"".join(events.digests), len(self.events))
        self.events += events

    def decide(self, first_seq: int, found: dict[bytes, int | None]) -> None:
        """Find the duplicates: ``found`` are the stored seqs of all digests that may be stored.

        Event ``i`` is to have seq ``first_seq + i``.
        """
        digests = self.events.digests
        seqs = found.copy()
        if unknown := {digest for digest, seq in found.items() if seq is None}:
            for position in compress(range(len(digests)), map(unknown.__contains__, digests)):
                seqs[digests[position]] = seqs[digests[position]] or first_seq + position  # of two in it, the first
        first = ((position, seqs[digests[position]]) for position in self.maybe)
        self.duplicates = {position: seq for position, seq in first if seq and seq != first_seq + position}
        self.first_seq = first_seq

    @property
    def maybe_stored(self) -> Iterator[bytes]:
        """The digests of keys that are to be looked up."""
        return map(self.events.digests.__getitem__, self.maybe)

    def number(self) -> None:
        """Give event ``i`` the seq ``first_seq + i``, and take the duplicates away."""
        topics, json, digests = self.events.topics, self.events.json, self.events.digests
        self.seqs: Sequence[int] = range(self.first_seq, self.first_seq + len(json))
        """Of the events that are left, as ``digests`` has their digests end to end."""
        if self.duplicates:
            json = json.copy()
            for position in self.duplicates:
                json[position] = b""
            topics, digests = list(compress(topics, json)), list(compress(digests, json))
            self.seqs = list(compress(self.seqs, json))
        self.digests = b"".join(digests)
        self._topics, self._json = topics, json

    def parameters(self, received_at: int) -> dict[str, Any]:
        """Columns of the view that the append statement inserts into, once the events are numbered.

        - ``first_seq``, ``next_seq``: what the first event has, or would have, and what comes after the last
        - ``received_at``: milliseconds since 1970, UTC
        - ``stored``: how many events there are
        - ``seqs``: JSON array of their seqs
        - ``digests``: for each of them 32 bytes
        - ``topics``: JSON array of the distinct topics: name, number of events, last seq
        - ``blocks``: JSON array of rows but for their data: first seq, start of the data, its length, topics,
          numbers, ends
        - ``data``: the JSON of the events, end to end
        """
        last = dict(zip(self._topics, self.seqs, strict=True))
        counted = [(topic, count, last[topic]) for topic, count in Counter(self._topics).items()]
        blocks = list(block.cut(self.events.topics, self._json))
        self.postings = sum(len(one.topics) for one in blocks)
        rows = [
            (
                self.first_seq + one.first,
                one.start + 1,  # as SQL counts
                one.ends[-1],
                orjson.dumps(one.topics).decode(),
                orjson.dumps(one.numbers).decode(),
                orjson.dumps(one.ends).decode(),
            )
            for one in blocks
        ]
        data = b"".join(self._json)
        self.stored_bytes = len(data)
        return {
            "first_seq": self.first_seq,
            "next_seq": self.first_seq + len(self),
            "received_at": received_at,
            "stored": len(self.seqs),
            "seqs": orjson.dumps(list(self.seqs)).decode(),
            "digests": self.digests,
            "topics": orjson.dumps(counted).decode(),
            "blocks": orjson.dumps(rows).decode(),
            "data": data,
        }
