"""What one transaction stores: events, packed as the parameters of one statement while they arrive.

Packing takes the event loop about as long as SQLite's thread needs for a third of the batch; it is done while the
batch before commits, so that SQLite never waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import orjson

from aggregator.event import Event
from aggregator.key_filter import KeyFilter

LENGTH_BITS: Final = 29
"""A span is one number: where an event's JSON starts, and in so many lower bits how long it is (below 512 MiB)."""

NUMBER_DIGITS: Final = 6
"""The number of an event's topic in the batch, as decimal text of this width: SQLite cuts it out of one long text."""


class Batch:
    """Events in the order in which they came. ``new`` and ``maybe`` hold positions: what the filter says of each."""

    def __init__(self, keys: KeyFilter) -> None:
        self._filter = keys
        self._digests: list[bytes] = []
        self._json: list[bytes] = []
        self._numbers: list[bytes] = []
        self._number_of: dict[str, bytes] = {}
        self.new: list[int] = []
        self.maybe: list[int] = []

    def __len__(self) -> int:
        return len(self._json)

    def add(self, events: Sequence[Event]) -> None:
        """Take more events. Their keys are in the filter from now on."""
        digests = b"".join([event.digest for event in events])
        self._filter.split(digests, len(self._json), self.new, self.maybe)
        self._digests.append(digests)
        self._json += [event.json for event in events]
        number_of = self._number_of
        for event in events:
            number = number_of.get(event.topic)
            if number is None:
                number = number_of[event.topic] = b"%0*d" % (NUMBER_DIGITS, len(number_of))
            self._numbers.append(number)

    @property
    def topics(self) -> list[str]:
        """The distinct topics, in the order of their numbers."""
        return list(self._number_of)

    @property
    def numbers(self) -> bytes:
        """For each event the number of its topic, in NUMBER_DIGITS digits."""
        return b"".join(self._numbers)

    @property
    def digests(self) -> bytes:
        """For each event the 32 bytes of its key's digest."""
        return b"".join(self._digests)

    @property
    def spans(self) -> str:
        """For each event where its JSON lies in ``data``: a JSON array of ``start << LENGTH_BITS | length``."""
        lengths = list(map(len, self._json))
        starts = accumulate(lengths, initial=1)  # as SQL counts
        return orjson.dumps(
            [start << LENGTH_BITS | length for start, length in zip(starts, lengths, strict=False)]
        ).decode()

    @property
    def data(self) -> bytes:
        """The JSON of all events, end to end."""
        return b"".join(self._json)
