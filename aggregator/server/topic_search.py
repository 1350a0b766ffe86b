"""TOPICS for those who may read some topics only: names are looked at for a while, and the next answer goes on there.

Among a million names there may be none that they may read, and the names in between must not be told. So an answer that
was cut short leaves here how far it has looked, for whoever may read as much and asks for what follows.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from aggregator.access.topics import Topics
from aggregator.server.turns import in_turns
from aggregator.storage.engine import AnyEngine, Topic

PAGE: Final = 1000
"""Names in one look at the store. To judge them takes 0.3 ms, and 64 globs of stars 25 ms."""

REMEMBERED: Final = 256
"""Searches that are remembered, for all identities together."""

REMEMBERED_S: Final = 60.0
"""How long. After that it begins afresh, because topics may have come in between."""


class Found(NamedTuple):
    """One answer."""

    topics: list[Topic]
    total: int | None
    """How many topics there are that may be read, if all were looked at."""
    truncated: bool
    """Whether it was cut short before it had as many topics as were asked for."""


class TopicSearches:
    """All searches of one server."""

    def __init__(self) -> None:
        self._reached: dict[tuple[Topics, str], tuple[str, float]] = {}

    async def find(self, engine: AnyEngine, may_read: Topics, limit: int, after: str, seconds: float) -> Found:
        """The topics behind ``after`` that may be read. Raises StorageUnreadable."""
        deadline = time.monotonic() + seconds
        start = name = self._resume(may_read, after)
        found, count, is_cut = list[Topic](), 0, False
        while (len(found) < limit or not start) and (page := await engine.topics(PAGE, name)):
            readable = [topic async for topic in in_turns(page) if may_read.has(topic.name)]
            found += readable[: limit - len(found)]
            count += len(readable)
            name = page[-1].name
            if is_cut := time.monotonic() > deadline:
                break
        truncated = is_cut and len(found) < limit
        if truncated:
            self._remember(may_read, found[-1].name if found else after, name)
        return Found(found, None if start or is_cut else count, truncated)

    def _resume(self, may_read: Topics, after: str) -> str:
        """Up to which name there is nothing behind ``after`` that may be read, as far as is known."""
        name, at = self._reached.pop((may_read, after), (after, 0.0))
        return name if time.monotonic() - at < REMEMBERED_S else after

    def _remember(self, may_read: Topics, after: str, name: str) -> None:
        self._reached.pop((may_read, after), None)
        self._reached[may_read, after] = name, time.monotonic()
        if len(self._reached) > REMEMBERED:
            del self._reached[next(iter(self._reached))]
