"""Statements that find blocks, and the conversion of their rows to events. Pure: no database."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress
from typing import Final, NamedTuple

from aggregator.storage import block
from aggregator.storage.engine import StorageUnreadable, Stretch, Wanted
from aggregator.storage.postgres import arrays
from aggregator.storage.postgres.positions import Positions

COLUMNS: Final = "b.first, b.following, b.received_at, b.topics, b.numbers, b.ends, b.skip, b.data"

ENDS: Final = """(SELECT o.first FROM {lane}.blocks o ORDER BY o.first LIMIT 1),
    (SELECT n.following - 1 FROM {lane}.blocks n ORDER BY n.first DESC LIMIT 1)"""
"""The first and the last number that a lane holds."""

# Where the block begins that has the event past ``after``.
_START: Final = """coalesce(
    (SELECT s.first FROM {lane}.blocks s WHERE s.first <= %(after)s::bigint + 1 ORDER BY s.first DESC LIMIT 1), 0
)"""

FORWARDS: Final = f"""
SELECT {COLUMNS}, {ENDS} FROM {{lane}}.blocks b WHERE b.first >= {_START} AND b.first <= %(until)s
ORDER BY b.first LIMIT %(limit)s
"""
BACKWARDS: Final = f"""
SELECT {COLUMNS}, {ENDS} FROM {{lane}}.blocks b WHERE b.first <= %(before)s ORDER BY b.first DESC LIMIT %(limit)s
"""
HEADS_FORWARDS: Final = f"""
SELECT b.first, b.topics FROM {{lane}}.blocks b WHERE b.first >= {_START} AND b.first <= %(until)s
ORDER BY b.first LIMIT %(heads)s
"""
HEADS_BACKWARDS: Final = """
SELECT b.first, b.topics FROM {lane}.blocks b WHERE b.first <= %(before)s ORDER BY b.first DESC LIMIT %(heads)s
"""
THESE: Final = f"SELECT {COLUMNS}, {ENDS} FROM {{lane}}.blocks b WHERE b.first = ANY(%(these)s) ORDER BY b.first"

# For each topic its next few blocks.
_OF_TOPICS: Final = """
SELECT {columns}, {ends} FROM {{lane}}.blocks b WHERE b.first = ANY(ARRAY(
    SELECT DISTINCT p.block FROM unnest(%(topics)s::int[]) AS t(id), LATERAL (
        SELECT q.block FROM {{lane}}.postings q WHERE q.topic = t.id AND {range}
        ORDER BY q.block {order} LIMIT %(limit)s
    ) p ORDER BY p.block {order} LIMIT %(limit)s
)) ORDER BY b.first {order}
"""
OF_TOPICS_FORWARDS: Final = _OF_TOPICS.format(
    columns=COLUMNS, ends=ENDS, range=f"q.block >= {_START} AND q.block <= %(until)s", order=""
)
OF_TOPICS_BACKWARDS: Final = _OF_TOPICS.format(columns=COLUMNS, ends=ENDS, range="q.block <= %(before)s", order="DESC")

EVENT: Final = f"""
SELECT k.number, {COLUMNS}, NULL, NULL FROM {{lane}}.keys k, LATERAL (
    SELECT * FROM {{lane}}.blocks s WHERE s.first <= k.number ORDER BY s.first DESC LIMIT 1
) b WHERE k.key = %s
"""


class Row(NamedTuple):
    """A block as a row, with the first and last number of its lane at the time of the read."""

    first: int
    following: int
    received_at: int
    topics: bytes
    numbers: bytes
    ends: bytes
    skip: list[int] | None
    data: bytes
    oldest: int | None
    newest: int | None

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of its topics. Raises StorageUnreadable."""
        return ids_in(self.first, self.topics)


def ids_in(first: int, topics: bytes) -> tuple[int, ...]:
    """The ids of a block's topics. Raises StorageUnreadable."""
    try:
        return arrays.read_plain_int4s(topics)
    except ValueError as error:
        raise damaged(first, error) from error


def stretch(
    positions: Positions, lane: int, row: Row, names: Mapping[int, str], wanted: Wanted | None, after: int, until: int
) -> Stretch:
    """The wanted events of a block that have numbers past ``after`` and up to ``until``.

    ``names`` has the names of the block's topics. Raises StorageUnreadable.
    """
    everything = wanted is None or wanted.all_topics
    if wanted and wanted.needle and wanted.needle not in row.data:
        return Stretch((), (), row.received_at)
    try:
        topics = [names[id] for id in row.ids]
        wants = None if everything or wanted is None else wanted.wants_topic
        numbers = range(row.first, row.following)
        found, json = block.columns(
            numbers, topics, lambda: row.numbers, arrays.read_plain_int4s(row.ends), row.data, wants, row.skip or ()
        )
        if found and (found[0] <= after or found[-1] > until):
            inside = [after < number <= until for number in found]
            found, json = list(compress(found, inside)), list(compress(json, inside))
        of_event = [topics[row.numbers[number - row.first]] for number in found]
    except (ValueError, TypeError, LookupError) as error:
        raise damaged(row.first, error) from error
    if positions.stride == 1:
        return Stretch(found, json, row.received_at, of_event)
    if isinstance(found, range):
        return Stretch(positions.seqs(lane, found.start, found.stop), json, row.received_at, of_event)
    return Stretch([number * positions.stride + lane for number in found], json, row.received_at, of_event)


def damaged(first: int, error: Exception) -> StorageUnreadable:
    return StorageUnreadable(f"cannot read: the block of event {first} is damaged: {error}")
