r"""MessagePack to JSON, so that nothing is lost and every JSON reader sees all of it.

A value that has the same form in both stays as it is. Other values are converted:

- bytes become text, whether they came as ``str`` or as ``bin``. If any text of a record is not UTF-8, the record is
  *escaped*: in all of its texts a backslash is doubled, and a byte that is not UTF-8 becomes ``\xNN``;
- a name in a map that is not text becomes its JSON (``1``, ``null``, ``[1,2]``). A repeated name is numbered
  (``key (2)``), because most JSON readers keep only one of several equal names;
- NaN and the infinities become ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``;
- an EventTime or a timestamp becomes a date and time (RFC 3339) with nanoseconds;
- any other extension becomes ``{"ext": type, "hex": "…"}``.
"""

from __future__ import annotations

import json
import math
import re
import struct
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import msgpack
import orjson

_BAD_BYTE: Final = re.compile("[\udc80-\udcff]")  # as "surrogateescape" decodes it
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_SECOND: Final = -62_135_596_800  # of year 1
_LAST_SECOND: Final = 253_402_300_799  # of year 9999
_NANOSECONDS: Final = 1_000_000_000
_EVENT_TIME: Final = 0  # the type of the extension
_MANY_NAMES: Final = 100
_json_without_nan = json.JSONEncoder(allow_nan=False).encode

JSON_DEPTH: Final = 240
"""Deepest nesting of a converted value: less than an event may have, and less than Python's stack takes."""


MOST_VALUES: Final = 50_000
"""Most values in a record whose values must be converted one by one, because some have no form in JSON. Converting that
many takes about 0.1 s."""


class TooMuch(Exception):
    """A value is nested deeper than JSON_DEPTH, or contains more than MOST_VALUES values."""


class Pairs:
    """A map that is not decoded to a dict: some of its names are not text, or are repeated."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self.pairs = pairs


_KINDS: Final[dict[type, str]] = {
    type(None): "nil", bool: "a boolean", int: "a number", float: "a number", str: "text", bytes: "bytes",
    list: "an array", dict: "a map", Pairs: "a map",
}  # fmt: skip


def _map(pairs: list[tuple[Any, Any]]) -> dict[str, Any] | Pairs:
    # A client can choose integers that all have the same hash; a dict of many of them takes for ever. Texts are safe.
    if len(pairs) > _MANY_NAMES and any(type(name) is not str for name, _ in pairs):
        return Pairs(pairs)
    try:
        made = dict(pairs)
    except TypeError:  # an array or a map as a name
        return Pairs(pairs)
    return made if len(made) == len(pairs) else Pairs(pairs)


def unpacker(max_buffer_bytes: int = 0) -> msgpack.Unpacker:
    """A decoder of MessagePack to values that ``encode`` takes. It raises ValueError and BufferFull."""
    return msgpack.Unpacker(
        max_buffer_size=max_buffer_bytes, strict_map_key=False, object_pairs_hook=_map,
        unicode_errors="surrogateescape",
    )  # fmt: skip


def unpack(data: bytes | memoryview) -> Any:
    """Decode one value that is known to be complete. Raises ValueError."""
    one = unpacker()
    one.feed(data)
    return one.unpack()


def encode(value: Any) -> bytes | None:
    """The JSON of a decoded value that has the same form in JSON, as nearly all have; None if it needs ``plain``."""
    try:
        text = orjson.dumps(value)
    except TypeError:
        return None
    if b"null" in text:  # it may have been NaN
        try:
            _json_without_nan(value)
        except ValueError:
            return None
    return text


def kind(value: Any) -> str:
    """The kind of a decoded value, for people. The value itself could be as long as a message, and as deep."""
    return _KINDS.get(type(value), "an extension")


def plain(value: Any) -> tuple[Any, bool]:
    """Convert a decoded value to one that has a form in JSON; return also whether it is escaped. Raises TooMuch."""
    try:
        return _Plain(escaped=False).of(value, 0), False
    except UnicodeEncodeError:
        return _Plain(escaped=True).of(value, 0), True


class _Plain:
    """Converts one value, with everything inside it."""

    def __init__(self, escaped: bool) -> None:
        self._escaped = escaped
        self._left = MOST_VALUES

    def of(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if depth > JSON_DEPTH:
            raise TooMuch(f"nested deeper than {JSON_DEPTH} levels")
        if self._left < 0:
            raise TooMuch(f"a record has more than {MOST_VALUES} values, and some of them have no form in JSON")
        match value:
            case str():
                return self._text(value)
            case bytes():
                return self._text(value.decode(errors="surrogateescape"))
            case float() if not math.isfinite(value):
                return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
            case list():
                return [self.of(one, depth + 1) for one in value]
            case dict():
                return self._object(list(value.items()), depth)
            case Pairs():
                return self._object(value.pairs, depth)
            case msgpack.ExtType() | msgpack.Timestamp():
                return moment(value) or _extension(value)
        return value

    def _object(self, pairs: list[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        seen: dict[str, int] = {}
        for key, value in pairs:
            name = first = self._name(key, depth)
            while name in made:
                seen[first] = seen.get(first, 1) + 1
                name = f"{first} ({seen[first]})"
            made[name] = self.of(value, depth + 1)
        return made

    def _name(self, key: Any, depth: int) -> str:
        found = self.of(key, depth + 1)
        return found if type(found) is str else orjson.dumps(found).decode()

    def _text(self, text: str) -> str:
        if self._escaped:
            return escape(text)
        text.encode()  # raises UnicodeEncodeError
        return text


def escape(text: str) -> str:
    r"""Escape text of bytes that may not be UTF-8: a byte that is not becomes ``\xNN``, and a backslash is doubled."""
    return _BAD_BYTE.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", text.replace("\\", "\\\\"))


def _extension(value: Any) -> dict[str, Any]:
    code, data = (value.code, value.data) if isinstance(value, msgpack.ExtType) else (-1, value.to_bytes())
    return {"ext": code, "hex": data.hex()}


def moment(time: Any) -> str | None:
    """A Forward time as a date and time (RFC 3339, UTC); None if it is no time, or not in the years 1 to 9999."""
    if type(time) is msgpack.ExtType and time.code == _EVENT_TIME and len(time.data) == 8:
        second, nanoseconds = struct.unpack(">II", time.data)
    elif type(time) is int:
        second, nanoseconds = time, 0
    elif type(time) is float and math.isfinite(time):
        second = math.floor(time)
        nanoseconds = int((time - second) * _NANOSECONDS)
    elif type(time) is msgpack.Timestamp:
        second, nanoseconds = time.seconds, time.nanoseconds
    else:
        return None
    if not (_FIRST_SECOND <= second <= _LAST_SECOND and nanoseconds < _NANOSECONDS):
        return None
    return f"{_date_time(second)}.{nanoseconds:09d}Z" if nanoseconds else f"{_date_time(second)}Z"


@lru_cache(maxsize=1024)
def _date_time(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat()[: -len("+00:00")]
