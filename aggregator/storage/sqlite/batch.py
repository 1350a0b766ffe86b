"""A batch in two phases: it takes events as they arrive, then it is packed into the parameters of a statement.

The first phase runs while the previous batch commits. The second phase waits for that commit, because only then is it
known which keys are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import orjson

from aggregator.event import Events
from aggregator.storage import block
from aggregator.storage.engine import Commit
from aggregator.storage.sqlite.key_filter import KeyFilter


@dataclass(frozen=True, slots=True)
class Decision:
    """Which events of a batch are duplicates, if its first event gets the seq ``first_seq``."""

    first_seq: int
    duplicates: Mapping[int, int]
    """The older seq of each duplicate, by position: its key is stored, or occurs earlier in the batch."""
    after: int
    """How many batches had been handed to SQLite by then, stored or not. One more makes the decision void."""


class Batch:
    """A batch that is being filled: events in the order in which they came."""

    def __init__(self, keys: KeyFilter) -> None:
        self._filter = keys
        self.events = Events()
        self._maybe: list[int] = []  # positions of events that the filter does not call new
        self.decision: Decision | None = None

    def __len__(self) -> int:
        return len(self.events)

    @property
    def size_bytes(self) -> int:
        """The total length of the events' JSON."""
        return self.events.size_bytes

    def add(self, events: Events) -> None:
        """Take more events. Their keys are in the filter from now on."""
        self._maybe += self._filter.maybe(b"".join(events.digests), len(self.events))
        self.events += events

    @property
    def maybe_stored(self) -> Iterator[bytes]:
        """The digests of keys that must be looked up. All other keys are new, and differ from each other."""
        return map(self.events.digests.__getitem__, self._maybe)

    def duplicates(self, first_seq: int, found: Mapping[bytes, int | None]) -> dict[int, int]:
        """The duplicates, if event ``i`` gets the seq ``first_seq + i``.

        ``found`` has the stored seq of each digest in ``maybe_stored``, or None.
        """
        digests = self.events.digests
        seqs = dict(found)
        if unknown := {digest for digest, seq in found.items() if seq is None}:
            for position in compress(range(len(digests)), map(unknown.__contains__, digests)):
                seqs[digests[position]] = seqs[digests[position]] or first_seq + position  # the first with this key
        first = ((position, seqs[digests[position]]) for position in self._maybe)
        return {position: seq for position, seq in first if seq and seq != first_seq + position}


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch that is ready to be stored, without its duplicates."""

    commit: Commit
    """The result of the batch, once the batch is stored."""
    seqs: Sequence[int]
    """The seqs of the events that are left."""
    digests: bytes
    """The digests of the same events, DIGEST_BYTES each."""
    stored_bytes: int
    """The length of their JSON."""
    postings: int
    """How many postings their blocks will have."""
    parameters: dict[str, Any]
    """Columns of the view that ``schema.APPEND`` inserts into, except those that only the writer knows:

    - ``first_seq``, ``next_seq``: the seq that the first event has, or would have, and the seq after the last
    - ``received_at``: milliseconds since 1970, UTC
    - ``stored``: how many events there are
    - ``seqs``: JSON array of their seqs
    - ``digests``: DIGEST_BYTES for each event
    - ``topics``: JSON array of the distinct topics: name, number of events, last seq
    - ``blocks``: JSON array of rows without data: first seq, start of the data, its length, topics, numbers, ends
    - ``data``: the JSON of the events, end to end
    """


def pack(events: Events, first_seq: int, duplicates: Mapping[int, int], received_at: int) -> Packed:
    """Give event ``i`` the seq ``first_seq + i``, remove the duplicates, and make the statement's parameters."""
    topics, json, digests = events.topics, events.json, events.digests
    all_seqs = range(first_seq, first_seq + len(json))
    seqs: Sequence[int] = all_seqs
    if duplicates:
        json = json.copy()
        for position in duplicates:
            json[position] = b""
        topics, digests = list(compress(topics, json)), list(compress(digests, json))
        seqs = list(compress(seqs, json))
    last_seq = dict(zip(topics, seqs, strict=True))
    counted = [(topic, count, last_seq[topic]) for topic, count in Counter(topics).items()]
    blocks = list(block.cut(events.topics, json))
    rows = [
        (
            first_seq + one.first,
            one.start + 1,  # SQL counts from 1
            one.ends[-1],
            orjson.dumps(one.topics).decode(),
            orjson.dumps(one.numbers).decode(),
            orjson.dumps(one.ends).decode(),
        )
        for one in blocks
    ]
    data = b"".join(json)
    packed_digests = b"".join(digests)
    return Packed(
        Commit(all_seqs, duplicates, received_at),
        seqs,
        packed_digests,
        len(data),
        sum(len(one.topics) for one in blocks),
        {
            "first_seq": first_seq,
            "next_seq": all_seqs.stop,
            "received_at": received_at,
            "stored": len(seqs),
            "seqs": orjson.dumps(list(seqs)).decode(),
            "digests": packed_digests,
            "topics": orjson.dumps(counted).decode(),
            "blocks": orjson.dumps(rows).decode(),
            "data": data,
        },
    )
