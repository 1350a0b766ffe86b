"""What a reader wants: topics by patterns and shard, events by source and content."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import orjson

from aggregator import json_text
from aggregator.wire import pattern

MAX_PATTERNS: Final = 64
"""Maximum patterns of one reader: each is tried once for each topic."""

KNOWN_TOPICS: Final = 2000
"""For how many topics an interest remembers whether they match: about 360 KB, so that a thousand readers stay
affordable. Past this number the collection is cleared."""

KEPT: Final = 64
"""How many interests are cached while no reader uses them. A reader that asks again and again finds the cached one,
with all that it remembers."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Interest:
    """What one reader wants. Readers with equal interests get the same lines; ``interest_in`` gives them one object."""

    patterns: tuple[str, ...]
    source: str | None = None
    """The exact source of an event."""
    contains: str | None = None
    """A text that occurs in the event's JSON as it was sent."""
    shard: tuple[int, int] | None = None
    """(i, n): the topics whose crc32 modulo n is i - 1."""
    readable: tuple[str, ...] | None = None
    """Patterns of the topics that this reader may read; None means all. Other topics do not exist for it."""
    _known: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    _matchers: list[Callable[[str], object]] = field(default_factory=list, compare=False, repr=False)
    _permissions: list[Callable[[str], object]] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Raises BadPattern."""
        self._matchers.extend(map(pattern.compile, self.patterns))
        self._permissions.extend(map(pattern.compile, self.readable or ()))

    @property
    def names(self) -> tuple[str, ...] | None:
        """The topics themselves, if every pattern is a topic's name."""
        return self.patterns if all(map(pattern.is_name, self.patterns)) else None

    @property
    def all_topics(self) -> bool:
        """Whether every topic is wanted."""
        return "*" in self.patterns and self.shard is None and self.readable is None

    @property
    def needle(self) -> bytes | None:
        """Bytes that occur in the JSON of each event that is wanted."""
        return self.contains.encode() if self.contains is not None else None

    @property
    def picky(self) -> bool:
        """Whether an event's topic alone does not tell if the event is wanted."""
        return self.source is not None or self.contains is not None

    def wants_topic(self, name: str) -> bool:
        """Whether events of this topic may be wanted."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= KNOWN_TOPICS:
                self._known.clear()
            known = self._known[name] = self._judge_topic(name)
        return known

    def _judge_topic(self, name: str) -> bool:
        if self.shard is not None:
            number, count = self.shard
            if zlib.crc32(name.encode()) % count != number - 1:
                return False
        if self.readable is not None and not any(permits(name) for permits in self._permissions):
            return False
        return any(matches(name) for matches in self._matchers)

    def wants_event(self, json: bytes) -> bool:
        """Whether an event of a wanted topic is wanted."""
        if self.contains is not None and self.contains.encode() not in json:
            return False
        if self.source is None:
            return True
        # Nearly always the JSON contains the source literally; if it does not, escapes may still spell it.
        if orjson.dumps(self.source) not in json and b"\\" not in json:
            return False
        return bool(json_text.decode(json).get("source") == self.source)


@lru_cache(maxsize=KEPT)
def interest_in(
    patterns: tuple[str, ...],
    source: str | None = None,
    contains: str | None = None,
    shard: tuple[int, int] | None = None,
    readable: tuple[str, ...] | None = None,
) -> Interest:
    """An interest, the same object for the same arguments. Raises BadPattern."""
    return Interest(patterns, source, contains, shard, readable)
