"""The globs of a permission, and which topics they match."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from aggregator.wire import pattern
from aggregator.wire.rules import MAX_NAME_CHARS, is_name

KNOWN_TOPICS: Final = 4096
"""Topics that are remembered as matching: as many as ``wire.rules`` keeps. Past this number all are judged again."""

_RESERVED: Final = re.compile(r"[]?[]")


class BadGlob(ValueError):
    """This is not a glob of a permission; the text says why."""


class Topics:
    """The topics that some globs match. In a glob ``*`` matches any run of characters; nothing else is special."""

    def __init__(self, globs: Iterable[str] = ()) -> None:
        """Raises BadGlob."""
        self.globs = tuple(globs)
        self.every = "*" in self.globs
        """Whether these globs match every topic."""
        self._matches = pattern.compile_any(map(_checked, self.globs))
        self._known: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.globs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topics) and self.globs == other.globs

    def __hash__(self) -> int:
        return hash(self.globs)

    def has(self, name: str) -> bool:
        """Whether a glob matches this topic."""
        return self.every or self._matches(name) is not None

    def has_all(self, names: Iterable[str]) -> bool:
        """Whether globs match each of these topics. Most calls find all of them remembered: that is one comparison."""
        if self.every or (distinct := set(names)) <= self._known:
            return True
        if not all(map(self.has, distinct)):
            return False
        if len(self._known) + len(distinct) > KNOWN_TOPICS:
            self._known.clear()
        self._known |= distinct
        return True

    def cover(self, patterns: Iterable[str]) -> bool:
        """Whether every topic that these patterns of a reader match is included.

        False if one pattern needs several globs to be covered.
        """
        return self.every or all(self._matches(pattern.hardest(one)) for one in patterns)


def _checked(glob: str) -> str:
    if not is_name(glob):
        raise BadGlob(f"expected 1 to {MAX_NAME_CHARS} characters without control characters")
    if found := _RESERVED.search(glob):
        raise BadGlob(f"{found[0]} is not allowed here: only * is special")
    return glob
