"""Lines for subscribers, joined to pieces. A piece has many lines, because a write costs 8 µs whatever it holds. Its
size is bounded, because a full buffer is exceeded by one piece.

Pure: it picks what a commit or a slice of the store has for one interest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from typing import Final

from aggregator.storage.engine import Commit, Stretch
from aggregator.wire import delivery
from aggregator.wire.interest import Interest

PIECE_BYTES: Final = 128 * 1024
"""A piece is complete when it has this size. The last block, or the last event, may double it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines of events, one after the other."""

    data: bytes
    seqs: Sequence[int]


def of_commit(interest: Interest, topics: Sequence[str], json: Sequence[bytes], commit: Commit) -> Iterator[Piece]:
    """The events of a whole commit that are new and wanted."""
    seqs = commit.seqs
    distinct = set(topics)
    wanted = set(filter(interest.wants_topic, distinct))
    if not wanted:
        return
    if len(wanted) < len(distinct) or commit.duplicates or interest.picky:
        keep = [topic in wanted and position not in commit.duplicates for position, topic in enumerate(topics)]
        seqs, json = list(compress(seqs, keep)), list(compress(json, keep))
    if interest.picky:
        keep = list(map(interest.wants_event, json))
        seqs, json = list(compress(seqs, keep)), list(compress(json, keep))
    ends = list(accumulate(len(one) + delivery.ENVELOPE_BYTES for one in json))
    start = size = 0
    while start < len(json):
        end = bisect_left(ends, size + PIECE_BYTES, start) + 1
        these = seqs[start:end]
        yield Piece(delivery.lines(these, json[start:end], commit.received_at), these)
        start, size = end, ends[min(end, len(ends)) - 1]


def of_slice(interest: Interest, stretches: Sequence[Stretch], limit: int | None) -> Iterator[Piece]:
    """The events of a slice that are wanted, up to a limit."""
    return joined(_of_stretches(interest, stretches, limit))


def _of_stretches(interest: Interest, stretches: Sequence[Stretch], limit: int | None) -> Iterator[Piece]:
    for stretch in stretches:
        seqs, json = stretch.seqs, stretch.json
        if interest.picky:
            keep = list(map(interest.wants_event, json))
            seqs, json = list(compress(seqs, keep)), list(compress(json, keep))
        if limit is not None:
            seqs, json = seqs[:limit], json[:limit]
            limit -= len(seqs)
        if seqs:
            yield Piece(delivery.lines(seqs, json, stretch.received_at), seqs)


def joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same lines in fewer pieces."""
    data: list[bytes] = []
    seqs: list[int] = []
    size = 0
    for piece in pieces:
        data.append(piece.data)
        seqs += piece.seqs
        size += len(piece.data)
        if size >= PIECE_BYTES:
            yield Piece(b"".join(data), seqs)
            data, seqs, size = [], [], 0
    if data:
        yield Piece(b"".join(data), seqs)
