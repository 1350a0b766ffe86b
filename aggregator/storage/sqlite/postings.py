"""Which blocks have events of a topic: an inverted index, which is written in bulk, after the blocks.

If a block's postings were stored together with it, each commit would have to change a page for each topic. So the last
blocks, those past ``posted_seq``, have no postings yet, and a look-up of a topic also searches their ``topics``. One
statement both adds postings and moves ``posted_seq``, so in any snapshot each block is found in exactly one way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aggregator.storage.sqlite import schema
from aggregator.storage.sqlite.database import Database

DUE: Final = 256
"""How many postings are written at a time, plus at most those of a batch. Commits wait for that, which shows in the
99th percentile at 5,000 events/s: with 512 nothing was gained over writing them with each block."""

_WRITE = "UPDATE totals SET posted_seq = (SELECT coalesce(max(first_seq), 0) FROM blocks)"
_UNWRITTEN = """
SELECT coalesce(sum(json_array_length(topics)), 0) FROM blocks WHERE first_seq > (SELECT posted_seq FROM totals)
"""

_START: Final = """coalesce(
    (SELECT max(first_seq) FROM blocks WHERE first_seq <= :after + 1), (SELECT min(first_seq) FROM blocks), 0
)"""
PAST_AFTER: Final = f"BETWEEN {_START} AND :until"
"""A condition on ``first_seq``: the block that has the event past ``:after``, and the blocks that follow it. If the
beginning is gone, the first is the oldest block that is left, because postings may still name older blocks."""

# For each topic the next few of its blocks, and the blocks with these topics that have no postings yet.
_OF_TOPIC = """
SELECT block FROM (
    SELECT block FROM postings WHERE topic = {topic} AND block {from_} ORDER BY block {order} LIMIT :blocks
)"""
_BLOCKS = """
SELECT {columns} FROM blocks WHERE first_seq IN (
    SELECT block FROM (
        {parts}
        SELECT first_seq AS block FROM blocks
        WHERE first_seq {unwritten}
          AND EXISTS (SELECT 1 FROM json_each(blocks.topics) WHERE value IN (SELECT value FROM json_each(:names)))
    ) ORDER BY block {order} LIMIT :blocks
) ORDER BY first_seq {order}
"""


def blocks_of(topics: Sequence[int], backwards: bool) -> str:
    """SQL for the next ``:blocks`` blocks that have events of these topics, past ``:after`` or up to ``:before``.

    The topics are given by id, if they have postings, and by name in the JSON array ``:names``.
    """
    from_, order = ("<= :before", "DESC") if backwards else (PAST_AFTER, "")
    # With two lower bounds SQLite would search by one of them, and might go through all blocks that have postings.
    first = "(SELECT posted_seq FROM totals) + 1"
    unwritten = f"BETWEEN {first} AND :before" if backwards else f"BETWEEN max({first}, {_START}) AND :until"
    parts = "".join(f"{_OF_TOPIC.format(topic=id, from_=from_, order=order)} UNION " for id in topics)
    return _BLOCKS.format(columns=schema.BLOCK_COLUMNS, parts=parts, unwritten=unwritten, order=order)


class Postings:
    """The postings of one database. ``load`` must be called first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unwritten = 0

    async def load(self) -> None:
        """Count what an earlier server has left unwritten."""
        ((self._unwritten,),) = await self._database.write(_UNWRITTEN)

    def stored(self, postings: int) -> None:
        """Record that blocks are stored now that will have this many postings."""
        self._unwritten += postings

    @property
    def due(self) -> bool:
        """Whether enough postings wait to be written."""
        return self._unwritten >= DUE

    async def write(self) -> None:
        """Write the postings that wait. Raises sqlite3.Error."""
        unwritten = self._unwritten
        await self._database.write(_WRITE)
        self._unwritten -= unwritten  # those of a batch stored in between may be written already, but still count
