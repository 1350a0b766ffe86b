"""Which blocks have events of a topic: an inverted index, which is written in bulk, behind the blocks.

Were a block's postings stored together with it, each commit would have to change a page for each topic. So the last
blocks have none yet: those past ``posted_seq``. Whoever looks for a topic looks through their ``topics`` too; whether
a block is here or there is one snapshot's matter, for one statement both adds postings and moves ``posted_seq``.
"""

from __future__ import annotations

from typing import Final

import aiosqlite

DUE: Final = 256
"""Postings that are written at a time, or a batch's more. What waits for them is felt in the 99th percentile at 5,000
events/s: with 512 nothing was won over writing them with each block."""

SCHEMA: Final = """
CREATE TABLE postings (
    topic INTEGER NOT NULL REFERENCES topics,
    block INTEGER NOT NULL REFERENCES blocks,
    number INTEGER NOT NULL,               -- of the topic in that block
    PRIMARY KEY (topic, block)
) WITHOUT ROWID;
"""

WRITE_TRIGGER: Final = """
CREATE TEMP TRIGGER write_postings AFTER UPDATE OF posted_seq ON totals BEGIN
    INSERT INTO postings (topic, block, number)
        SELECT (SELECT id FROM topics WHERE name = named.value), first_seq, named.key
        FROM blocks CROSS JOIN json_each(blocks.topics) AS named
        WHERE first_seq > OLD.posted_seq AND first_seq <= NEW.posted_seq;
END;
"""
_WRITE = "UPDATE totals SET posted_seq = (SELECT coalesce(max(first_seq), 0) FROM blocks)"
_UNWRITTEN = """
SELECT coalesce(sum(json_array_length(topics)), 0) FROM blocks WHERE first_seq > (SELECT posted_seq FROM totals)
"""

# The rows of blocks, with the number that the topic has there. What was written comes before what was not.
_BLOCKS = """
SELECT block, received_at, number, numbers, ends, data FROM postings CROSS JOIN blocks ON first_seq = block
WHERE topic = (SELECT id FROM topics WHERE name = :topic) {written}
UNION ALL
SELECT first_seq, received_at, key, numbers, ends, data FROM blocks CROSS JOIN json_each(topics)
WHERE first_seq > (SELECT posted_seq FROM totals) AND value = :topic {unwritten}
ORDER BY 1 {order}
"""
NEWEST: Final = _BLOCKS.format(written="", unwritten="", order="DESC LIMIT :limit")
"""The blocks with the newest ``limit`` events of ``topic``, newest first: in each is one at least."""

# From the blocks that :after may lie in, one of each kind.
AFTER: Final = _BLOCKS.format(
    written="""AND block >= coalesce((
        SELECT max(block) FROM postings WHERE block <= :after AND topic = (SELECT id FROM topics WHERE name = :topic)
    ), 0)""",
    unwritten="AND first_seq >= coalesce((SELECT max(first_seq) FROM blocks WHERE first_seq <= :after), 0)",
    order="LIMIT :limit + 2",
)
"""The blocks with the first ``limit`` events of ``topic`` past the seq ``after``, oldest first."""


class Postings:
    """The postings of one database. ``load`` comes first. ``writer`` is its only read-write connection."""

    def __init__(self, writer: aiosqlite.Connection) -> None:
        self._writer = writer
        self._unwritten = 0

    async def load(self) -> None:
        """Count what a server before this one has left unwritten."""
        ((self._unwritten,),) = await self._writer.execute_fetchall(_UNWRITTEN)

    def stored(self, postings: int) -> None:
        """Take note of blocks that are stored now, and are to have so many postings."""
        self._unwritten += postings

    @property
    def due(self) -> bool:
        """Whether there are enough to be written."""
        return self._unwritten >= DUE

    async def write(self) -> None:
        """Write them. Raises sqlite3.Error."""
        unwritten = self._unwritten
        await self._writer.execute_fetchall(_WRITE)
        self._unwritten -= unwritten  # a batch may have been stored meanwhile: its own are counted once more then
