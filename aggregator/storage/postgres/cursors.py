"""The cursors of all servers. A reader claims the row of its name, and only the last claim moves the cursor."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from aggregator.storage.engine import Cursor, StorageBusy, StorageFailed
from aggregator.storage.postgres.positions import Positions
from aggregator.storage.postgres.query import Query

_ALL: Final = "SELECT name, interest, acked, acked_at, claim FROM aggregator.cursors"

# The newest reader wins, if it wants the same events. The position that it gets is past every ack of the reader before.
_CLAIM: Final = """
INSERT INTO aggregator.cursors AS c VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (name) DO UPDATE SET claim = excluded.claim, interest = excluded.interest
WHERE c.interest IN (excluded.interest, %s)
RETURNING name, interest, acked, acked_at, claim
"""

_SAVE: Final = """
UPDATE aggregator.cursors c SET interest = n.interest, acked = n.acked, acked_at = n.acked_at
FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[]) AS n(name, interest, acked, acked_at, claim)
WHERE c.name = n.name AND c.claim = n.claim RETURNING c.name
"""

_CLAIMS: Final = "SELECT name, claim FROM aggregator.cursors WHERE name = ANY(%s)"

# Not by the name alone: a repeated attempt would delete a cursor that was made in between.
_FORGET: Final = """
DELETE FROM aggregator.cursors c USING unnest(%s::text[], %s::text[]) AS g(name, claim)
WHERE c.name = g.name AND c.claim = g.claim
"""


class CursorTable:
    """The table of cursors."""

    def __init__(self, query: Query, positions: Positions) -> None:
        self._query = query
        self._positions = positions
        self._going: dict[str, str] = {}  # names that are being deleted, and their claims

    async def all(self) -> list[Cursor]:
        """As ``Engine.cursors``."""
        return [self._cursor(*row) for row in await self._query.read(_ALL)]

    async def claim(self, cursor: Cursor, seen: str | None) -> Cursor | None:
        """As ``Engine.claim_cursor``."""
        row = (cursor.name, cursor.interest, str(cursor.acked), cursor.acked_at, cursor.claim, seen)
        try:
            found = await self._query.write(_CLAIM, row)
        except StorageBusy:  # if the first attempt was carried out, this repeats it
            found = await self._query.write(_CLAIM, row)
        return self._cursor(*found[0]) if found else None

    async def save(self, changed: Sequence[Cursor], gone: Sequence[str]) -> Collection[str]:
        """As ``Engine.save_cursors``."""
        saved: list[tuple[str]] = []
        if changed:
            columns = [(one.name, one.interest, str(one.acked), one.acked_at, one.claim) for one in changed]
            saved = await self._query.write(_SAVE, [list(column) for column in zip(*columns, strict=True)])
        if gone:
            await self._forget(gone)
        return {one.name for one in changed} - {name for (name,) in saved}

    async def _forget(self, gone: Sequence[str]) -> None:
        """Delete cursors. After a failure the next call deletes the same cursors, but no newer ones of their names."""
        self._going = {name: claim for name, claim in self._going.items() if name in gone}
        if unseen := [name for name in gone if name not in self._going]:
            self._going |= dict(await self._query.write(_CLAIMS, (unseen,)))
        await self._query.write(_FORGET, (list(self._going), list(self._going.values())))
        self._going.clear()

    def _cursor(self, name: str, interest: str, acked: str, acked_at: int, claim: str) -> Cursor:
        position = self._positions.parse(acked)
        if position is None:
            raise StorageFailed(f"the cursor {name} has no position: {acked}")
        return Cursor(name, interest, position, acked_at, claim)
