"""A block: events that were committed together, as one row. With a row for each event, SQLite took a third longer.

A row has the JSON of its events end to end in ``data``, and three arrays. ``topics`` has the names of their topics. For
each seq from ``first_seq`` on, ``ends`` says where in ``data`` its event ends, and ``numbers`` which topic it has. A
seq whose event has no length was not used: its event was a duplicate.

No sockets, no database: this module only cuts and reads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress, pairwise
from typing import Final

import orjson

from aggregator.storage.sqlite.schema import BLOCK_EVENTS

BLOCK_BYTES: Final = 64 * 1024
"""The same limit for large events; only a single event may be larger."""


@dataclass(frozen=True, slots=True)
class Block:
    """Where in a batch a block lies, and its row but for the data."""

    first: int  # position of its first event
    start: int  # where in the JSON of the batch its data starts
    topics: list[str]
    numbers: list[int | None]
    ends: list[int]


def cut(topics: Sequence[str], json: Sequence[bytes]) -> Iterator[Block]:
    """Cut a batch into blocks. Where the JSON is empty there is no event."""
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


def columns(
    first_seq: int, topics: str, numbers: str, ends: str, data: bytes, wanted: Callable[[str], bool] | None
) -> tuple[Sequence[int], list[bytes]]:
    """Seqs and JSON of the events in a row, of all topics or of those that are wanted.

    Raises ValueError, TypeError or LookupError where the row is damaged.
    """
    bounds = [0, *orjson.loads(ends)]
    if bounds[-1] != len(data) or bounds != sorted(bounds):
        raise ValueError(f"block {first_seq} is damaged")
    keep = [True] if wanted is None else list(map(wanted, orjson.loads(topics)))
    if not keep:
        raise ValueError("it has no topics")
    seqs = range(first_seq, first_seq + len(bounds) - 1)
    if all(keep):
        json = [data[start:end] for start, end in pairwise(bounds)]
        return (seqs, json) if all(json) else (list(compress(seqs, json)), list(filter(None, json)))
    of_event = orjson.loads(numbers)
    if len(of_event) != len(seqs):
        raise ValueError("it has more or fewer numbers than events")
    if len(set(bounds)) == len(bounds):
        chosen = list(compress(range(len(seqs)), map(keep.__getitem__, of_event)))
    else:  # some seqs were not used
        sized = enumerate(zip(of_event, pairwise(bounds), strict=True))
        chosen = [place for place, (number, (start, end)) in sized if start != end and keep[number]]
    return [seqs[place] for place in chosen], [data[bounds[place] : bounds[place + 1]] for place in chosen]


def events(first_seq: int, numbers: str, ends: str, data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Seq, number of the topic and JSON of each event in a row. Raises as ``columns`` does."""
    seqs, json = columns(first_seq, "", numbers, ends, data, None)
    of_topic = orjson.loads(numbers)
    if len(of_topic) != len(orjson.loads(ends)):
        raise ValueError(f"block {first_seq} is damaged")
    for seq, one in zip(seqs, json, strict=True):
        yield seq, of_topic[seq - first_seq], one
