"""Globs over topics, as in SQLite's GLOB.

``*`` matches any run of characters, dots included. ``?`` matches one character. ``[abc]``, ``[a-z]`` and ``[^a]`` match
one character of a set. Case counts. A pattern without any of these special characters is one topic's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

Matcher = Callable[[str], object]
"""Tells whether a topic matches."""

_SPECIAL = re.compile(r"[*?[]")
_ANYTHING = "\0"  # replaces each special element; no topic has this character, so only a star matches it
_NOTHING = "(?!)"


class BadPattern(Exception):
    """The pattern is not valid; the text says why."""


def is_name(pattern: str) -> bool:
    """Whether a pattern matches only the topic of that name."""
    return _SPECIAL.search(pattern) is None


def compile(pattern: str) -> Matcher:
    """A function that tells whether a topic matches. Raises BadPattern for a set that is not closed.

    The part between two stars is matched as early as possible, and never retried (an atomic group). With retries, a
    pattern of many stars would take for ever.
    """
    return re.compile(_expression(pattern), re.DOTALL).fullmatch


def compile_any(patterns: Iterable[str]) -> Matcher:
    """A function that tells whether a topic matches at least one of these patterns. Raises BadPattern."""
    return re.compile("|".join(map(_expression, patterns)) or _NOTHING, re.DOTALL).fullmatch


def hardest(pattern: str) -> str:
    """A text that a glob of stars and plain characters matches only if it matches every topic that ``pattern`` matches.

    The converse does not hold. A glob may match every such topic and still not this text: then a plain character of
    the glob corresponds to a set with one member, or with none. Raises BadPattern.
    """
    text = ""
    index = 0
    while special := _SPECIAL.search(pattern, index):
        text += pattern[index : special.start()] + _ANYTHING
        index = special.end()
        if special[0] == "[":
            _, index = _set(pattern, index)
    return text + pattern[index:]


def _expression(pattern: str) -> str:
    """A pattern as a regular expression."""
    first, *rest = _pieces(pattern)
    if not rest:
        return first
    *middle, last = rest
    early = "".join(f"(?>.*?{piece})" for piece in middle if piece)
    return f"{first}{early}.*{last}"


def _pieces(pattern: str) -> list[str]:
    """The parts between the stars, each as a regular expression without repetition."""
    pieces = [""]
    index = 0
    while index < len(pattern):
        character = pattern[index]
        index += 1
        if character == "*":
            pieces.append("")
        elif character == "?":
            pieces[-1] += "."
        elif character == "[":
            expression, index = _set(pattern, index)
            pieces[-1] += expression
        else:
            pieces[-1] += re.escape(character)
    return pieces


def _set(pattern: str, start: int) -> tuple[str, int]:
    """The set that opens just before ``start``, as a regular expression, and the index after the set."""
    index = start
    negated = pattern[index : index + 1] == "^"
    index += negated
    ranges: list[tuple[str, str]] = []
    if pattern[index : index + 1] == "]":  # as the first character of a set it is a member
        ranges.append(("]", "]"))
        index += 1
    low = ""  # the character with which a range begins if a hyphen follows
    while (character := pattern[index : index + 1]) != "]":
        if not character:
            raise BadPattern(f"the set that opens at character {start} is not closed")
        index += 1
        if character == "-" and low and pattern[index : index + 1] not in ("]", ""):
            ranges.append((low, pattern[index]))
            low = ""
            index += 1
        else:
            ranges.append((character, character))
            low = character
    members = "".join(f"{_escape(low)}-{_escape(high)}" for low, high in ranges if low <= high)
    if not members:
        return ("." if negated else _NOTHING), index + 1
    return f"[{'^' if negated else ''}{members}]", index + 1


def _escape(character: str) -> str:
    return f"\\U{ord(character):08x}"
