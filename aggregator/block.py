"""A block: events that were committed together, as one row. With a row for each, SQLite's part took a third longer.

A row has the JSON of events end to end in ``data``, and three arrays: the names of their topics in ``topics``, and for
each seq from ``first_seq`` on in ``ends`` where in ``data`` its event ends, in ``numbers`` which topic it has. Where an
event would have no length none is: what would have had this seq was a duplicate.

No sockets, no database: this module knows SQL only as text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

import orjson

BLOCK_EVENTS: Final = 256
"""Most events that are read in vain to find one."""

BLOCK_BYTES: Final = 64 * 1024
"""The same limit for large events; only a single one may be larger."""

SCHEMA: Final = """
CREATE TABLE blocks (
    first_seq INTEGER PRIMARY KEY,
    received_at INTEGER NOT NULL,          -- milliseconds since 1970, UTC
    topics TEXT NOT NULL,                  -- JSON array of names
    numbers TEXT NOT NULL,                 -- JSON array, for each seq from first_seq on: index in topics
    ends TEXT NOT NULL,                    -- JSON array, likewise: where in data its event ends
    data BLOB NOT NULL                     -- the events as they were sent, end to end
);
CREATE VIEW events AS                      -- for people: a server does not look at it
    SELECT seq, json_extract(topics, '$[' || number || ']') AS topic, received_at,
           CAST(substr(data, start + 1, length) AS TEXT) AS json
    FROM (
        SELECT first_seq + key AS seq, topics, received_at, data,
               json_extract(numbers, '$[' || key || ']') AS number,
               iif(key, json_extract(ends, '$[' || (key - 1) || ']'), 0) AS start,
               value - iif(key, json_extract(ends, '$[' || (key - 1) || ']'), 0) AS length
        FROM blocks CROSS JOIN json_each(ends)
    )
    WHERE length > 0;
"""


@dataclass(slots=True)
class Block:
    """Where in a batch a block lies, and its row but for the data."""

    first: int  # position of its first event
    start: int  # where in the JSON of the batch its data starts
    topics: list[str]
    numbers: list[int | None]
    ends: list[int]


def cut(topics: Sequence[str], json: Sequence[bytes]) -> Iterator[Block]:
    """Cut a batch into blocks. Where the JSON is empty no event is."""
    first = start = 0
    while first < len(json):
        ends = list(accumulate(map(len, json[first : first + BLOCK_EVENTS])))
        if ends[-1] > BLOCK_BYTES:
            del ends[max(1, bisect_right(ends, BLOCK_BYTES)) :]
        last = first + len(ends)
        part = topics[first:last]
        names = part
        if b"" in json[first:last]:
            names = [name for name, one in zip(part, json[first:last], strict=True) if one]
        number_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
        if number_of:
            yield Block(first, start, list(number_of), list(map(number_of.get, part)), ends)
        first, start = last, start + ends[-1]


def events(
    first_seq: int, numbers: str, ends: str, data: bytes, topic: int | None = None
) -> Iterator[tuple[int, int, bytes]]:
    """Seq, number of the topic and JSON of each event in a row, or of those in one topic.

    Raises ValueError or TypeError where the row is damaged.
    """
    bounds = [0, *orjson.loads(ends)]
    if bounds[-1] != len(data) or bounds != sorted(bounds):
        raise ValueError(f"block {first_seq} is damaged")
    each = zip(orjson.loads(numbers), pairwise(bounds), strict=True)
    for seq, (number, (start, end)) in enumerate(each, first_seq):
        if start < end and (topic is None or number == topic):
            yield seq, number, data[start:end]
