"""How many events and topics there are. Every few seconds, the server that gets the turn counts the new ones.

A commit changes no count, because all commits of a lane would change the same row. A look adds the events that were
stored since the last counting, so each look is bounded work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from aggregator.storage.engine import Topic
from aggregator.storage.postgres.positions import Positions
from aggregator.storage.postgres.query import Query
from aggregator.storage.postgres.schema import lane_name

COUNT_S: Final = 5.0
"""How often a server tries to count."""

_TOPICS: Final = "SELECT id, name, lane FROM aggregator.topics WHERE name > %s ORDER BY name LIMIT %s"
_COUNTS: Final = """
SELECT topic, sum(stored)::bigint, max(last) FROM (
    SELECT c.topic, c.stored, c.last FROM {lane}.counts c WHERE c.topic = ANY(%(topics)s)
    UNION ALL
    SELECT p.topic, p.events, p.last FROM unnest(%(topics)s::int[]) AS t(id), LATERAL (
        SELECT q.topic, q.events, q.last FROM {lane}.postings q
        WHERE q.topic = t.id AND q.block > (SELECT d.block FROM {lane}.counted d)
    ) p
) AS both_kinds GROUP BY topic
"""


class Census:
    """The counts of one store. ``look`` must be called first."""

    def __init__(self, query: Query, positions: Positions) -> None:
        self._query = query
        self._positions = positions
        self._counted_at = time.monotonic()
        self.stored_total = 0
        self.topics_total = 0

    async def look(self) -> None:
        """Find out how much all servers have stored. Raises StorageUnreadable."""
        lanes = range(self._positions.lanes)
        each = " UNION ALL ".join(f"SELECT stored, topics FROM {lane_name(lane)}.totals()" for lane in lanes)
        ((self.stored_total, self.topics_total),) = await self._query.read(
            f"SELECT sum(stored)::bigint, sum(topics)::bigint FROM ({each}) AS lanes"
        )

    async def count(self) -> None:
        """Count the new events, if COUNT_S have passed. Raises as ``Query.write`` does."""
        if time.monotonic() - self._counted_at >= COUNT_S:
            self._counted_at = time.monotonic()
            for lane in range(self._positions.lanes):
                await self._query.write(f"SELECT {lane_name(lane)}.count_up()")

    async def topics(self, limit: int, after: str) -> list[Topic]:
        """As ``Engine.topics``. A topic whose first event is not stored yet is left out."""
        after = after.partition("\0")[0]  # no topic lies between, and PostgreSQL refuses NUL
        found: list[Topic] = []
        full = True
        while full and len(found) < limit:
            page = await self._query.read(_TOPICS, (after, limit))
            full = len(page) == limit
            counts: dict[int, Sequence[int]] = {}
            for lane in {lane for _, _, lane in page}:
                ids = [id for id, _, its_lane in page if its_lane == lane]
                rows = await self._query.read(_COUNTS.format(lane=lane_name(lane)), {"topics": ids})
                counts |= {id: (stored, self._positions.seqs(lane, last, last + 1)[0]) for id, stored, last in rows}
            found += [Topic(name, *counts[id]) for id, name, _ in page if id in counts]
            if page:
                after = page[-1][1]
        return found[:limit]
