"""Which blocks have events of a topic: an inverted index, which is written in bulk, behind the blocks.

If a block's postings were stored together with it, each commit would have to change a page for each topic. So the last
blocks, those past ``posted_seq``, have no postings yet, and a look-up of a topic goes through their ``topics`` too. One
statement both adds postings and moves ``posted_seq``, so in any snapshot each block is found in exactly one way.
"""

from __future__ import annotations

from typing import Final

from aggregator.storage.sqlite.database import Database

DUE: Final = 256
"""Postings that are written at a time, or a batch's more. Commits wait for that, which is felt in the 99th percentile
at 5,000 events/s: with 512 nothing was won over writing them with each block."""

_WRITE = "UPDATE totals SET posted_seq = (SELECT coalesce(max(first_seq), 0) FROM blocks)"
_UNWRITTEN = """
SELECT coalesce(sum(json_array_length(topics)), 0) FROM blocks WHERE first_seq > (SELECT posted_seq FROM totals)
"""

# The rows of the next blocks from :start on, with the number that the topic has there. What was written comes before
# what was not.
_BLOCKS = """
SELECT block, received_at, number, numbers, ends, data FROM postings CROSS JOIN blocks ON first_seq = block
WHERE topic = (SELECT id FROM topics WHERE name = :topic) AND block {written}
UNION ALL
SELECT first_seq, received_at, key, numbers, ends, data FROM blocks CROSS JOIN json_each(topics)
WHERE first_seq > (SELECT posted_seq FROM totals) AND value = :topic AND first_seq {unwritten}
ORDER BY 1 {order} LIMIT :blocks
"""
NEWEST: Final = _BLOCKS.format(written="<= :start", unwritten="<= :start", order="DESC")
"""Blocks that have events of ``topic``, newest first."""

OLDEST: Final = _BLOCKS.format(written=">= :start", unwritten=">= :start", order="")
"""The same blocks, oldest first."""

BLOCK_BEFORE: Final = """
SELECT max(
    coalesce((SELECT max(block) FROM postings
              WHERE block <= :after AND topic = (SELECT id FROM topics WHERE name = :topic)), 0),
    coalesce((SELECT max(first_seq) FROM blocks
              WHERE first_seq <= :after AND first_seq > (SELECT posted_seq FROM totals)), 0)
)
"""
"""Where to start with OLDEST, so that no event of ``topic`` past the seq ``after`` is left out."""


class Postings:
    """The postings of one database. ``load`` comes first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unwritten = 0

    async def load(self) -> None:
        """Count what an earlier server has left unwritten."""
        ((self._unwritten,),) = await self._database.write(_UNWRITTEN)

    def stored(self, postings: int) -> None:
        """Take note of blocks that are stored now, and will have so many postings."""
        self._unwritten += postings

    @property
    def due(self) -> bool:
        """Whether enough of them wait to be written."""
        return self._unwritten >= DUE

    async def write(self) -> None:
        """Write them. Raises sqlite3.Error."""
        unwritten = self._unwritten
        await self._database.write(_WRITE)
        self._unwritten -= unwritten  # a batch may have been stored meanwhile: its own are counted once more then
