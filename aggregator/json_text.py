"""JSON as text: decode it, find where its values end, measure how deep it is nested.

Values are decoded only to be judged; what is stored is always the text. No sockets, no database.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import orjson

MAX_DEPTH: Final = 250
"""Deepest nesting of one event. A reply shows the event two levels deeper, inside an array of events. It must stay
readable there: orjson writes 254 levels, jq 1.6 reads 256."""

# The shortest text that can nest deeper than that: a bracket opened and closed for each level.
SHALLOW_BYTES: Final = 2 * MAX_DEPTH

# Strings, and whatever may hold a number. Possessive, so that each byte of an unterminated string is looked at once.
_STRING_OR_WORD = re.compile(rb'("(?:[^"\\]|\\.)*+"?)|[-+.\w]+')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')
_SPACE = re.compile(r"[ \t\r\n]*")

# Only finds where a value ends inside JSON that orjson has accepted. Numbers stay text: int() refuses 4,301 digits.
_find_end = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode


class NotJson(Exception):
    """The text is not JSON; the message says what is wrong and where."""


class TooDeep(Exception):
    """The text is nested deeper than MAX_DEPTH levels."""

    def __init__(self) -> None:
        super().__init__(f"nested deeper than {MAX_DEPTH} levels")


def decode(text: bytes) -> Any:
    """Decode JSON. Raises NotJson, and TooDeep where the decoder gives up (``is_too_deep`` is stricter).

    A number too large for a double is still a number and its digits are kept in the text; here it decodes to 0.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        failure = error
    if failure.msg.startswith("number is infinity"):
        try:
            return orjson.loads(_STRING_OR_WORD.sub(_blank_number, text))
        except orjson.JSONDecodeError as error:
            failure = error
    if failure.msg.startswith("depth limit"):
        raise TooDeep
    if failure.msg.startswith("str is not valid UTF-8"):
        raise NotJson(f"not valid UTF-8 at byte {_first_bad_byte(text)}")
    raise NotJson(f"{failure.msg} at character {failure.pos + 1}")


def _blank_number(match: re.Match[bytes]) -> bytes:
    return match[0] if match[1] or not _NUMBER.fullmatch(match[0]) else b"0"


def _first_bad_byte(text: bytes) -> int:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.start + 1
    return 1


def is_too_deep(text: bytes) -> bool:
    """Whether valid JSON is nested deeper than MAX_DEPTH levels."""
    if len(text) <= SHALLOW_BYTES or text.count(b"{") + text.count(b"[") <= MAX_DEPTH:
        return False  # however its brackets are placed
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        token = match[0]
        if token in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif token in b"}]":
            depth -= 1
    return deepest > MAX_DEPTH


def elements(text: str, start: int) -> list[str]:
    """The members of the array that opens at ``start``, each as its own text, in valid JSON. Raises TooDeep."""
    try:
        return [text[slice(*span)] for span in _spans(text, start)]
    except RecursionError:
        raise TooDeep from None


def _spans(text: str, start: int) -> Iterator[tuple[int, int]]:
    index = _skip_space(text, start + 1)
    while text[index] != "]":
        _, end = _find_end(text, index)
        yield index, end
        index = _skip_space(text, end)
        if text[index] == ",":
            index = _skip_space(text, index + 1)


def last_member(text: str) -> int:
    """Where the value of an object's last member starts, in valid JSON. Raises TooDeep.

    Of a repeated name the last member counts, as in orjson.
    """
    index = _skip_space(text, 1)
    while True:
        _, index = _find_end(text, index)
        start = _skip_space(text, _skip_space(text, index) + 1)
        try:
            _, index = _find_end(text, start)
        except RecursionError:
            raise TooDeep from None
        index = _skip_space(text, index)
        if text[index] == "}":
            return start
        index = _skip_space(text, index + 1)


def _skip_space(text: str, index: int) -> int:
    match = _SPACE.match(text, index)
    assert match is not None
    return match.end()
