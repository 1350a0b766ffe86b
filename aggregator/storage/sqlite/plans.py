"""How the events of an interest are found: through the postings of its topics, or by scanning blocks.

A scan examines the topics of each block. Postings lead from one block with a topic to the next block with it. They are
better for rare topics, and for topics that a reader names, because the newest event of such a topic may lie far back.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

import orjson

from aggregator.storage.engine import Wanted
from aggregator.storage.sqlite.writer import Writer

MAX_LISTED_TOPICS: Final = 32
RARE_DIVISOR: Final = 16
"""Up to MAX_LISTED_TOPICS are read through postings, if they were named or have at most 1/RARE_DIVISOR of all
events."""

PAGE: Final = 1000
"""How many topics are examined at a time, about 1 ms."""

RENEWED: Final = 2
"""A plan is made again when the store has this many times as many events: rare topics may have become frequent."""

_NAMED = "SELECT id, name, stored FROM topics WHERE name IN (SELECT value FROM json_each(?))"
_NEXT = "SELECT id, name, stored FROM topics WHERE id > ? ORDER BY id LIMIT ?"

Rows = Callable[[str, Any], Awaitable[list[sqlite3.Row]]]


@dataclass(slots=True)
class _Plan:
    good_until: int
    """With more events in the store, the plan is no longer good."""
    topics_seen: int = -1
    """How many topics the store had when the plan was last updated."""
    last_id: int = 0
    """The topics up to this one have been examined."""
    found: list[tuple[int, str]] = field(default_factory=list)
    """The wanted topics, by id and name."""
    stored: int = 0
    """How many events the wanted topics have."""
    scan: bool = False


class Plans:
    """The plans of one database, each kept as long as its interest exists."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._plans: WeakKeyDictionary[Wanted, _Plan] = WeakKeyDictionary()
        self._updating = asyncio.Lock()

    async def topics(self, wanted: Wanted, rows: Rows) -> list[tuple[int, str]] | None:
        """The topics to be read through postings, by id and name; None if blocks must be scanned.

        ``rows`` reads from the database.
        """
        if wanted.all_topics:
            return None
        plan = self._plans.get(wanted)
        if plan is None or self._writer.stored_total > plan.good_until:
            plan = self._plans[wanted] = _Plan(good_until=RENEWED * self._writer.stored_total + PAGE)
        if not plan.scan and plan.topics_seen != self._writer.topics_total:
            async with self._updating:
                await self._update(plan, wanted, rows)
        return None if plan.scan else plan.found

    async def _update(self, plan: _Plan, wanted: Wanted, rows: Rows) -> None:
        """Examine the topics that are new since the last update."""
        topics_total = self._writer.topics_total  # read first: the next update examines a topic that appears now
        if wanted.names is None:
            full = True
            while full and not plan.scan:
                page = await rows(_NEXT, (plan.last_id, PAGE))
                full = len(page) == PAGE
                self._add(plan, wanted, page)
        else:
            plan.found, plan.stored = [], 0
            self._add(plan, wanted, await rows(_NAMED, (orjson.dumps(wanted.names).decode(),)))
        plan.topics_seen = topics_total

    def _add(self, plan: _Plan, wanted: Wanted, page: list[sqlite3.Row]) -> None:
        for id, name, stored in page:
            plan.last_id = id
            if wanted.wants_topic(name):
                plan.found.append((id, name))
                plan.stored += stored
        few = len(plan.found) <= MAX_LISTED_TOPICS
        rare = wanted.names is not None or plan.stored * RARE_DIVISOR <= self._writer.stored_total
        plan.scan = not (few and rare)
