"""TOPICS for clients that may read only some topics. An answer searches for a limited time; the next one goes on there.

Among a million names there may be none that the client may read, and the client must not be told other names. So a
search that was cut short is remembered here, with the name that it has reached. The next request with the same
permissions that asks for what follows goes on from that name.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from aggregator.access.topics import Topics
from aggregator.server.turns import in_turns
from aggregator.storage.engine import AnyEngine, Topic

PAGE: Final = 1000
"""Names that the store is asked for at a time. Judging them takes 0.3 ms, and by 64 globs of stars 25 ms."""

REMEMBERED: Final = 256
"""Searches that are remembered, for all identities together."""

REMEMBERED_S: Final = 60.0
"""How long a search is remembered. After that it starts again, because topics may have been added in between."""


class Found(NamedTuple):
    """One answer."""

    topics: list[Topic]
    total: int | None
    """How many topics the client may read, if all names were looked at."""
    truncated: bool
    """Whether the search was cut short before it had as many topics as were asked for."""


class TopicSearches:
    """All searches of one server."""

    def __init__(self) -> None:
        self._reached: dict[tuple[Topics, str], tuple[str, float]] = {}

    async def find(self, engine: AnyEngine, may_read: Topics, limit: int, after: str, seconds: float) -> Found:
        """The topics after ``after`` that the client may read. Raises StorageUnreadable."""
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
        """The name to search from: as far as is known, no topic between ``after`` and this name may be read."""
        name, at = self._reached.pop((may_read, after), (after, 0.0))
        return name if time.monotonic() - at < REMEMBERED_S else after

    def _remember(self, may_read: Topics, after: str, name: str) -> None:
        self._reached.pop((may_read, after), None)
        self._reached[may_read, after] = name, time.monotonic()
        if len(self._reached) > REMEMBERED:
            del self._reached[next(iter(self._reached))]
