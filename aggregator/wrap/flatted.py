"""log4js's default layout: one event as an array of its values, which refer to each other by their indices.

Source: npm's package ``flatted``, README.md and ``esm/index.js``. The first value is the event. In the event, and in
all other objects and arrays, each string is the index of a value.
"""

from __future__ import annotations

from typing import Any, Final

MAX_DEPTH: Final = 100
"""Deepest nesting of a value; an event of log4js has five levels."""

GROWTH: Final = 4
"""How many times larger than its text a value may become, because values that are referred to repeatedly multiply."""

MAX_VALUES: Final = 10_000
"""Most values from which an event is put together: some 10 ms of the loop. An event of log4js has some twenty."""


class _Refused(Exception):
    """The array is not of this form, or refers to itself in a circle, or grows too large."""


def read(values: list[Any], size_bytes: int) -> dict[str, Any] | None:
    """The event of an array whose text has ``size_bytes``; None if the array is no event of log4js, or is too large.

    An array with a value that nothing refers to is no such event, because that value would be lost.
    """
    if not values or type(values[0]) is not dict:
        return None
    reader = _Reader(values, GROWTH * size_bytes)
    try:
        found = reader.value(0, 0)
    except _Refused:
        return None
    return found if type(found) is dict and len(reader.used) == len(values) else None


class _Reader:
    def __init__(self, values: list[Any], budget: int) -> None:
        self._values = values
        self._budget = budget
        self._left = MAX_VALUES
        self.used: set[int] = set()

    def value(self, index: int, depth: int) -> Any:
        """The value at an index, with everything that it refers to in its place."""
        if depth > MAX_DEPTH:
            raise _Refused
        self.used.add(index)
        return self._revived(self._values[index], depth)

    def _revived(self, value: Any, depth: int) -> Any:
        self._budget -= len(value) if type(value) is str else 1
        self._left -= 1
        if self._budget < 0 or self._left < 0:
            raise _Refused
        if type(value) is dict:
            return {name: self._member(member, depth) for name, member in value.items()}
        if type(value) is list:
            return [self._member(member, depth) for member in value]
        return value

    def _member(self, member: Any, depth: int) -> Any:
        if type(member) is not str:
            return self._revived(member, depth)
        if not (member.isdecimal() and member.isascii() and len(member) < 8 and int(member) < len(self._values)):
            raise _Refused
        return self.value(int(member), depth + 1)
