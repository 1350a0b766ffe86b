"""A block: events that were committed together, as one row. With a row for each event, databases take far longer.

A row has the JSON of its events end to end in ``data``. For each seq from the block's first on, ``ends`` says where in
``data`` its event ends, and ``numbers`` says which of ``topics`` the event has. Each engine encodes these columns in
its own way.

No sockets, no database: this module only cuts and reads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress, pairwise
from typing import Final, TypeVar

BLOCK_EVENTS: Final = 256
"""Most events in a block, and so the most that are read to find one. The number of a topic thus fits into a byte."""

BLOCK_BYTES: Final = 64 * 1024
"""The same limit for large events; only a single event may be larger."""

Topic = TypeVar("Topic")


@dataclass(frozen=True, slots=True)
class Block:
    """Where a block lies in its batch, and its row without the data."""

    first: int  # position of its first event
    start: int  # where in the JSON of the batch its data starts
    topics: list[str]
    numbers: list[int | None]
    ends: list[int]


def cut(topics: Sequence[str], json: Sequence[bytes]) -> Iterator[Block]:
    """Cut a batch into blocks. A place with empty JSON has no event."""
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
    seqs: range,
    topics: Sequence[Topic],
    numbers: Callable[[], Sequence[int | None]],
    ends: Sequence[int],
    data: bytes,
    wanted: Callable[[Topic], bool] | None,
    unused: Collection[int] = (),
) -> tuple[Sequence[int], list[bytes]]:
    """The seqs and the JSON of the events in a row, of all topics or only of the wanted topics.

    A place without JSON, or in ``unused``, has no event. ``numbers`` is called only if it is needed. Raises ValueError,
    TypeError or LookupError if the row is damaged.
    """
    bounds = [0, *ends]
    if len(ends) != len(seqs) or bounds[-1] != len(data) or bounds != sorted(bounds):
        raise ValueError("its ends do not fit")
    keep = [True] if wanted is None else list(map(wanted, topics))
    if not keep:
        raise ValueError("it has no topics")
    sizes = pairwise(bounds)
    if all(keep) and not unused:
        json = [data[start:end] for start, end in sizes]
        return (seqs, json) if all(json) else (list(compress(seqs, json)), list(filter(None, json)))
    of_event = numbers() if not all(keep) else [0] * len(seqs)
    if len(of_event) != len(seqs):
        raise ValueError("it has more or fewer numbers than events")
    if len(set(bounds)) == len(bounds) and not unused:
        chosen = list(compress(range(len(seqs)), map(keep.__getitem__, of_event)))  # type: ignore[arg-type]
    else:  # some seqs were not used
        places = enumerate(zip(of_event, sizes, strict=True))
        chosen = [
            place
            for place, (number, (start, end)) in places
            if start != end and place not in unused and (number is not None and keep[number])
        ]
    return [seqs[place] for place in chosen], [data[bounds[place] : bounds[place + 1]] for place in chosen]
