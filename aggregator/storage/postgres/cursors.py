"""Cursors of all servers. Whoever reads under a name owns its row: only the owner's acks move the cursor."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from aggregator.storage.engine import Cursor, StorageFailed
from aggregator.storage.postgres.positions import Positions
from aggregator.storage.postgres.query import Query

_ALL: Final = "SELECT name, interest, acked, acked_at, owner FROM aggregator.cursors"

# The newest reader wins, if it wants the same events. What it gets is behind every ack of the one before.
_CLAIM: Final = """
INSERT INTO aggregator.cursors AS c VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (name) DO UPDATE SET owner = excluded.owner WHERE c.interest = excluded.interest
RETURNING name, interest, acked, acked_at, owner
"""

_SAVE: Final = """
UPDATE aggregator.cursors c SET acked = n.acked, acked_at = n.acked_at
FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::text[]) AS n(name, acked, acked_at, owner)
WHERE c.name = n.name AND c.owner = n.owner RETURNING c.name
"""

_FORGET: Final = "DELETE FROM aggregator.cursors WHERE name = ANY(%s)"


class CursorTable:
    """The table of cursors."""

    def __init__(self, query: Query, positions: Positions) -> None:
        self._query = query
        self._positions = positions

    async def all(self) -> list[Cursor]:
        """As ``Engine.cursors``."""
        return [self._cursor(*row) for row in await self._query.read(_ALL)]

    async def claim(self, cursor: Cursor) -> Cursor | None:
        """As ``Engine.claim_cursor``."""
        row = (cursor.name, cursor.interest, str(cursor.acked), cursor.acked_at, cursor.owner)
        found = await self._query.write(_CLAIM, row)
        return self._cursor(*found[0]) if found else None

    async def save(self, changed: Sequence[Cursor], gone: Sequence[str]) -> Collection[str]:
        """As ``Engine.save_cursors``."""
        saved: list[tuple[str]] = []
        if changed:
            columns = [(one.name, str(one.acked), one.acked_at, one.owner) for one in changed]
            saved = await self._query.write(_SAVE, [list(column) for column in zip(*columns, strict=True)])
        if gone:
            await self._query.write(_FORGET, (list(gone),))
        return {one.name for one in changed} - {name for (name,) in saved}

    def _cursor(self, name: str, interest: str, acked: str, acked_at: int, owner: str) -> Cursor:
        position = self._positions.parse(acked)
        if position is None:
            raise StorageFailed(f"the cursor {name} has no position: {acked}")
        return Cursor(name, interest, position, acked_at, owner)
