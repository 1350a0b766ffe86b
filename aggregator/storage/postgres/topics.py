"""Topics: each has an id and a lane, assigned once by the first server that stores an event of the topic."""

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
"""How many topics are remembered: about 20 MB. Past this number the collection is cleared."""

PAGE: Final = 1000
"""How many topics are examined at a time."""

MAX_LISTED: Final = 32
"""Up to this many topics are read through their postings; with more, all blocks are examined."""

_BY_NAME: Final = "SELECT name, id, lane FROM aggregator.topics WHERE name = ANY(%s)"
_BY_ID: Final = "SELECT name, id, lane FROM aggregator.topics WHERE id = ANY(%s)"
_NEXT: Final = "SELECT name, id, lane FROM aggregator.topics WHERE id > %s ORDER BY id LIMIT %s"
# One server at a time: a reader that sees an id must also see all lower ids, because it looks for topics past an id.
_MAKE: Final = f"""
WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock({schema.LOCK}))
INSERT INTO aggregator.topics (name, lane) SELECT made.name, made.lane
FROM turn CROSS JOIN unnest(%s::text[], %s::int[]) AS made(name, lane) ON CONFLICT (name) DO NOTHING
"""


class Topic(NamedTuple):
    """What the database knows of a topic."""

    name: str
    id: int
    lane: int


class _Plan:
    """The topics that an interest wants, among those that were examined so far."""

    def __init__(self) -> None:
        self.found: list[Topic] = []
        self.last_id = 0


class Topics:
    """The topics of one database, as far as this server knows them. They never change, so what is known stays right.

    This holds on one primary only. If a failover loses topics, the next primary may give their ids to other topics.
    """

    def __init__(self, query: Query, lanes: int) -> None:
        self._query = query
        self.lanes = lanes
        self.generation = 0
        """How often all topics were forgotten. What was read in an earlier generation may be of another primary."""
        self._by_name: dict[str, Topic] = {}
        self._by_id: dict[int, Topic] = {}
        self._plans: WeakKeyDictionary[Wanted, _Plan] = WeakKeyDictionary()

    def known(self, names: Iterable[str]) -> dict[str, Topic] | None:
        """The topics of these names; None if any of them is not known here."""
        by_name = self._by_name
        try:
            return {name: by_name[name] for name in names}
        except KeyError:
            return None

    async def made(self, names: Sequence[str]) -> dict[str, Topic]:
        """The topics of these names; missing topics are created. Raises as ``Query.write`` does.

        The lane is computed from the name, so it does not depend on the order in which names come.
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
        """The topics of these names, from the server that creates them: another server may be a former primary."""
        generation = self.generation
        rows = await self._query.write(_BY_NAME, (names,))
        return {topic.name: topic for topic in self._learn(rows, generation)}

    async def find(self, names: Collection[str]) -> list[Topic]:
        """The topics that exist of these names. No topic's name has a NUL, and PostgreSQL refuses a text with one."""
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
        """The topics that a reader wants, to be read through postings; None if all blocks must be examined."""
        if wanted.all_topics:
            return None
        if wanted.names is not None:
            return [topic for topic in await self.find(wanted.names) if wanted.wants_topic(topic.name)]
        plan = self._plans.setdefault(wanted, _Plan())
        full = True
        while full and len(plan.found) <= MAX_LISTED:
            page = [Topic(*row) for row in await self._query.read(_NEXT, (plan.last_id, PAGE))]
            full = len(page) == PAGE
            if page and page[-1].id > plan.last_id:  # another task may have examined this page already
                plan.last_id = page[-1].id
                plan.found += [topic for topic in page if wanted.wants_topic(topic.name)]
        return plan.found if len(plan.found) <= MAX_LISTED else None

    def forget(self) -> None:
        """Forget all topics, so that they are read again: another server may be the primary now."""
        self.generation += 1
        self._by_name.clear()
        self._by_id.clear()
        self._plans.clear()

    def _learn(self, rows: Iterable[Sequence[Any]], generation: int) -> list[Topic]:
        """Rows as topics. They are remembered, unless the topics were forgotten since ``generation``."""
        learned = list(itertools.starmap(Topic, rows))
        if generation != self.generation:
            return learned
        if len(self._by_name) > KEPT:
            self._by_name.clear()
            self._by_id.clear()
        self._by_name |= {topic.name: topic for topic in learned}
        self._by_id |= {topic.id: topic for topic in learned}
        return learned
