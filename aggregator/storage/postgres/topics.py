"""Topics: each has an id and a lane, given once, by whichever server is the first to store an event of it."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from aggregator.storage.engine import StorageBusy, Wanted
from aggregator.storage.postgres import schema
from aggregator.storage.postgres.query import Query

KEPT: Final = 100_000
"""Topics that are remembered: about 20 MB. Past this number the collection starts afresh."""

PAGE: Final = 1000
"""Topics that are looked through at a time."""

MAX_LISTED: Final = 32
"""Up to so many topics are read through their postings; with more all blocks are looked at."""

_BY_NAME: Final = "SELECT name, id, lane FROM aggregator.topics WHERE name = ANY(%s)"
_BY_ID: Final = "SELECT name, id, lane FROM aggregator.topics WHERE id = ANY(%s)"
_NEXT: Final = "SELECT name, id, lane FROM aggregator.topics WHERE id > %s ORDER BY id LIMIT %s"
# One server at a time: whoever sees an id has to see all below it, because readers look for topics past an id.
_MAKE: Final = f"""
WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock({schema.LOCK}))
INSERT INTO aggregator.topics (name, lane) SELECT made.name, made.lane
FROM turn CROSS JOIN unnest(%s::text[], %s::int[]) AS made(name, lane) ON CONFLICT (name) DO NOTHING
"""


class Topic(NamedTuple):
    """What the database knows of a name."""

    name: str
    id: int
    lane: int


class _Plan:
    """Which topics an interest has, as far as topics were looked through."""

    def __init__(self) -> None:
        self.found: list[Topic] = []
        self.last_id = 0


class Topics:
    """The topics of one database, as far as they are known here. They never change, so what is known stays right.

    That is so on one primary. If a failover has lost topics, the next primary may give their ids to others.
    """

    def __init__(self, query: Query, lanes: int) -> None:
        self._query = query
        self.lanes = lanes
        self.generation = 0
        """How often all was forgotten: what was found out before may be of another primary."""
        self._by_name: dict[str, Topic] = {}
        self._by_id: dict[int, Topic] = {}
        self._plans: WeakKeyDictionary[Wanted, _Plan] = WeakKeyDictionary()

    def known(self, names: Iterable[str]) -> dict[str, Topic] | None:
        """The topics of these names; None if one has to be looked for."""
        by_name = self._by_name
        try:
            return {name: by_name[name] for name in names}
        except KeyError:
            return None

    async def made(self, names: Sequence[str]) -> dict[str, Topic]:
        """The topics of these names; those that are missing are made. Raises as ``Query.write`` does.

        The lane comes from the name, so it does not depend on the order in which names come.
        """
        found = {name: self._by_name[name] for name in names if name in self._by_name}
        if missing := [name for name in names if name not in found]:
            found |= await self._read_where_written(missing)
        if missing := [name for name in missing if name not in found]:
            lanes = [zlib.crc32(name.encode()) % self.lanes for name in missing]
            await self._query.write(_MAKE, (missing, lanes))
            found |= await self._read_where_written(missing)
        if len(found) < len(names):
            raise StorageBusy("topics are missing that were made on another primary")
        return found

    async def _read_where_written(self, names: Sequence[str]) -> dict[str, Topic]:
        """The topics of these names, from the server that makes them: another one may be the primary of the past."""
        generation = self.generation
        rows = await self._query.write(_BY_NAME, (names,))
        return {topic.name: topic for topic in self._learn(rows, generation)}

    async def find(self, names: Collection[str]) -> list[Topic]:
        """The topics of these names that there are. A name with a NUL is no topic's, and PostgreSQL refuses it."""
        found = [self._by_name[name] for name in names if name in self._by_name]
        if missing := [name for name in names if name not in self._by_name and "\0" not in name]:
            generation = self.generation
            found += self._learn(await self._query.read(_BY_NAME, (missing,)), generation)
        return found

    async def names(self, ids: Iterable[int]) -> dict[int, str]:
        """The names of these ids."""
        wanted = set(ids)
        found = {id: self._by_id[id].name for id in wanted if id in self._by_id}
        if missing := wanted - found.keys():
            generation = self.generation
            rows = await self._query.read(_BY_ID, (list(missing),))
            found |= {topic.id: topic.name for topic in self._learn(rows, generation)}
        return found

    async def listed(self, wanted: Wanted) -> list[Topic] | None:
        """The topics that a reader wants, to be read through postings; None if all blocks are to be looked at."""
        if wanted.all_topics:
            return None
        if wanted.names is not None:
            return [topic for topic in await self.find(wanted.names) if wanted.wants_topic(topic.name)]
        plan = self._plans.setdefault(wanted, _Plan())
        full = True
        while full and len(plan.found) <= MAX_LISTED:
            page = [Topic(*row) for row in await self._query.read(_NEXT, (plan.last_id, PAGE))]
            full = len(page) == PAGE
            if page and page[-1].id > plan.last_id:  # another task may have looked meanwhile
                plan.last_id = page[-1].id
                plan.found += [topic for topic in page if wanted.wants_topic(topic.name)]
        return plan.found if len(plan.found) <= MAX_LISTED else None

    def forget(self) -> None:
        """Look for all of them again: another server may be the primary now."""
        self.generation += 1
        self._by_name.clear()
        self._by_id.clear()
        self._plans.clear()

    def _learn(self, rows: Iterable[Sequence[Any]], generation: int) -> list[Topic]:
        """Rows as topics. They are remembered, unless all was forgotten since they were asked for."""
        learned = list(itertools.starmap(Topic, rows))
        if generation != self.generation:
            return learned
        if len(self._by_name) > KEPT:
            self._by_name.clear()
            self._by_id.clear()
        self._by_name |= {topic.name: topic for topic in learned}
        self._by_id |= {topic.id: topic for topic in learned}
        return learned
