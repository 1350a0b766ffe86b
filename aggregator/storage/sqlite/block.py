"""Blocks as rows: ``topics``, ``numbers`` and ``ends`` are JSON arrays, and ``topics`` has names.

A seq whose event has length 0 was not used: its event was a duplicate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import orjson

from aggregator.storage import block


def columns(
    first_seq: int, topics: str, numbers: str, ends: str, data: bytes, wanted: Callable[[str], bool] | None
) -> tuple[Sequence[int], list[bytes]]:
    """Seqs and JSON of the events in a row, of all topics or of the wanted topics. Raises as ``block.columns`` does."""
    bounds = orjson.loads(ends)
    seqs = range(first_seq, first_seq + len(bounds))
    names = orjson.loads(topics) if wanted else ()
    return block.columns(seqs, names, partial(orjson.loads, numbers), bounds, data, wanted)


def events(first_seq: int, numbers: str, ends: str, data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Seq, number of the topic and JSON of each event in a row. Raises as ``columns`` does."""
    seqs, json = columns(first_seq, "", numbers, ends, data, None)
    of_topic = orjson.loads(numbers)
    if len(of_topic) != len(orjson.loads(ends)):
        raise ValueError(f"block {first_seq} is damaged")
    for seq, one in zip(seqs, json, strict=True):
        yield seq, of_topic[seq - first_seq], one
