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

# orjson reads 1024 levels and no more: inside so many arrays, it fails on any text nested deeper than MAX_DEPTH.
_READABLE_LEVELS: Final = 1024
_OPENING = b"[" * (_READABLE_LEVELS - MAX_DEPTH)
_CLOSING = b"]" * (_READABLE_LEVELS - MAX_DEPTH)

_AS_ARRAYS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_SPACE = re.compile(r"[ \t\r\n]*")


def no_constant(name: str) -> None:
    """Refuse NaN and the infinities, which the standard library accepts as JSON. Raises ValueError."""
    raise ValueError(f"unexpected {name}")


# The standard library's scanner accepts two things that orjson refuses although JSON's grammar allows them: numbers too
# large for a double, and lone surrogates. A number is decoded to the length of its text, because any number will do,
# and len() is called from C. int() would refuse 4,301 digits, and take long for fewer.
_lenient = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=no_constant)
_find_end = _lenient.raw_decode


class NotJson(Exception):
    """The text is not JSON; the message says what is wrong and where."""


class TooDeep(Exception):
    """The text is nested deeper than MAX_DEPTH levels."""

    def __init__(self) -> None:
        super().__init__(f"nested deeper than {MAX_DEPTH} levels")


def decode(text: bytes) -> Any:
    """Decode JSON. Raises NotJson, and TooDeep where the decoder gives up (``is_too_deep`` is stricter).

    Two things that orjson refuses although JSON's grammar allows them are accepted: a number too large for a double
    (it decodes to another number), and an escape that is half of a surrogate pair (it decodes to that half). What is
    stored is the text.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        failure = error
    if failure.msg.startswith("depth limit"):
        raise TooDeep
    if failure.msg.startswith("str is not valid UTF-8"):
        raise NotJson(f"not valid UTF-8 at byte {_first_bad_byte(text)}")
    if failure.msg.startswith("number is infinity") or "surrogate" in failure.msg:
        return _decode_leniently(text)
    raise NotJson(f"{failure.msg} at character {failure.pos + 1}")


def _decode_leniently(text: bytes) -> Any:
    try:
        return _lenient.decode(text.decode())
    except UnicodeDecodeError as error:
        raise NotJson(f"not valid UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"{error.msg.lower()} at character {error.pos + 1}") from None
    except ValueError as error:  # NaN, Infinity
        raise NotJson(str(error)) from None
    except RecursionError:
        raise TooDeep from None


def _first_bad_byte(text: bytes) -> int:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.start + 1
    return 1


def is_too_deep(text: bytes) -> bool:
    """Whether JSON is nested deeper than MAX_DEPTH levels, even if a repeated name hides that in the decoded value."""
    if len(text) <= SHALLOW_BYTES or text.count(b"{") + text.count(b"[") <= MAX_DEPTH:
        return False  # whatever the order of its brackets
    try:
        orjson.loads(_OPENING + _brackets(text) + _CLOSING)
    except orjson.JSONDecodeError:
        return True
    return False


def _brackets(text: bytes) -> bytes:
    """The arrays and objects in JSON, as arrays that hold only arrays. A mebibyte takes some 20 ms, at worst 50 ms."""
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
    outside_strings = b"".join(unescaped.split(b'"')[::2])
    return outside_strings.translate(_AS_ARRAYS, _NO_BRACKETS).replace(b"][", b"],[")


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


def members(text: str, start: int = 0) -> dict[str, str]:
    """The members of the object that opens at ``start``, each value as its own text, in valid JSON. Raises TooDeep."""
    found: dict[str, str] = {}
    index = _skip_space(text, start + 1)
    try:
        while text[index] != "}":
            name, index = _find_end(text, index)
            begin = _skip_space(text, _skip_space(text, index) + 1)
            _, index = _find_end(text, begin)
            found[name] = text[begin:index]
            index = _skip_space(text, index)
            if text[index] == ",":
                index = _skip_space(text, index + 1)
    except RecursionError:
        raise TooDeep from None
    return found


def only_member(text: str) -> int | None:
    """Where the value of an object's member starts, in valid JSON; None if the object has more. Raises TooDeep."""
    _, end_of_name = _find_end(text, _skip_space(text, 1))
    start = _skip_space(text, _skip_space(text, end_of_name) + 1)
    try:
        _, end = _find_end(text, start)
    except RecursionError:
        raise TooDeep from None
    return start if text[_skip_space(text, end)] == "}" else None


def _skip_space(text: str, index: int) -> int:
    match = _SPACE.match(text, index)
    assert match is not None
    return match.end()
