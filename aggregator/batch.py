"""What one transaction stores: events as they arrive, then the parameters of one statement.

The first part is done while the batch before commits. The second waits for it, for only then is it known which keys
are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
        self.size_bytes = 0
        """The length of all events' JSON."""

    def __len__(self) -> int:
        return len(self.events)

    def add(self, events: Events) -> None:
        """Take more events. Their keys are in the filter from now on."""
        self.maybe += self._filter.maybe(b"".join(events.digests), len(self.events))
        self.events += events
        self.size_bytes += events.size_bytes

    def parameters(self, first_seq: int, received_at: int, duplicates: dict[int, int]) -> dict[str, Any]:
        """The columns of the view that the append statement inserts into, without the events whose key is stored.

        - ``first_seq``, ``next_seq``: event ``i`` is to have seq ``first_seq + i``
        - ``received_at``: milliseconds since 1970, UTC
        - ``stored``: how many events there are
        - ``fresh``: JSON array of their positions
        - ``digests``: for each event of the batch, stored or not, 32 bytes
        - ``topics``: JSON array of the distinct topics: name, number of events, last seq
        - ``blocks``: JSON array of rows but for their data: first seq, start of the data, its length, topics,
          numbers, ends
        - ``data``: the JSON of the events, end to end
        """
        topics, json, positions = self.events.topics, self.events.json, range(len(self.events))
        fresh: Sequence[int] = positions
        if duplicates:
            json = json.copy()
            for position in duplicates:
                json[position] = b""
            topics, fresh = list(compress(topics, json)), list(compress(positions, json))
        last = dict(zip(topics, fresh, strict=True))
        counted = [(topic, count, first_seq + last[topic]) for topic, count in Counter(topics).items()]
        blocks = [
            (
                first_seq + one.first,
                one.start + 1,  # as SQL counts
                one.ends[-1],
                orjson.dumps(one.topics).decode(),
                orjson.dumps(one.numbers).decode(),
                orjson.dumps(one.ends).decode(),
            )
            for one in block.cut(self.events.topics, json)
        ]
        return {
            "first_seq": first_seq,
            "next_seq": first_seq + len(positions),
            "received_at": received_at,
            "stored": len(fresh),
            "fresh": orjson.dumps(list(fresh)).decode(),
            "digests": b"".join(self.events.digests),
            "topics": orjson.dumps(counted).decode(),
            "blocks": orjson.dumps(blocks).decode(),
            "data": b"".join(json),
        }
