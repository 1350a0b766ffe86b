"""What one transaction stores: events as they arrive, then the parameters of one statement.

The first part is done while the batch before commits. The second waits for it, for only then is it known which keys
are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
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

    def __len__(self) -> int:
        return len(self.events)

    def add(self, events: Events) -> None:
        """Take more events. Their keys are in the filter from now on."""
        self.maybe += self._filter.maybe(b"".join(events.digests), len(self.events))
        self.events += events

    def number(self, first_seq: int, duplicates: Collection[int]) -> None:
        """Give event ``i`` the seq ``first_seq + i``, and take away the events at the positions of ``duplicates``."""
        topics, json, digests = self.events.topics, self.events.json, self.events.digests
        self._first_seq = first_seq
        self.seqs: Sequence[int] = range(first_seq, first_seq + len(json))
        """Of the events that are left, as ``digests`` has their digests end to end."""
        if duplicates:
            json = json.copy()
            for position in duplicates:
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
        blocks = [
            (
                self._first_seq + one.first,
                one.start + 1,  # as SQL counts
                one.ends[-1],
                orjson.dumps(one.topics).decode(),
                orjson.dumps(one.numbers).decode(),
                orjson.dumps(one.ends).decode(),
            )
            for one in block.cut(self.events.topics, self._json)
        ]
        return {
            "first_seq": self._first_seq,
            "next_seq": self._first_seq + len(self),
            "received_at": received_at,
            "stored": len(self.seqs),
            "seqs": orjson.dumps(list(self.seqs)).decode(),
            "digests": self.digests,
            "topics": orjson.dumps(counted).decode(),
            "blocks": orjson.dumps(blocks).decode(),
            "data": b"".join(self._json),
        }
