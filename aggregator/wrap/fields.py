"""What a JSON object says of itself: a name or a moment, in one of several fields."""

from __future__ import annotations

import functools
import json
import re
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from aggregator import json_text
from aggregator.wire import rules
from aggregator.wrap.stamp import leading_stamp

_MICROSECONDS: Final = ((10**11, 10**6), (10**14, 10**3), (10**17, 1))
"""How many microseconds the unit of a number has. Numbers below 10^11 are seconds, below 10^14 milliseconds, below
10^17 microseconds; larger numbers are nanoseconds."""
_MILLISECONDS: Final = (10**11, 10**14)
_FRACTIONS: Final = tuple(f".{milliseconds:03}000+00:00" for milliseconds in range(1000))
_ZONED: Final = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|[+-]\d\d:\d\d)")


# Accepts what orjson refuses although the grammar of JSON allows it: numbers too large for a double, half surrogate
# pairs. Unlike the decoder of ``json_text``, it keeps the values of numbers, because one of them may be an id.
_lenient: Final = json.JSONDecoder(parse_constant=json_text.no_constant).decode


def decode(content: bytes) -> Any:
    """The JSON value of a text. Raises ValueError if the text is not JSON, or is nested too deeply to be read."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            return _lenient(content.decode())
        except RecursionError:
            raise ValueError("too deep") from None


def find(fields: Any, name: str) -> Any:
    """A member of an object; a name with dots may also name one of a nested object. None if there is no such member."""
    if type(fields) is not dict:
        return None
    if name in fields:
        return fields[name]
    for part in name.split("."):
        if type(fields) is not dict:
            return None
        fields = fields.get(part)
    return fields


def text(value: Any) -> str | None:
    """Text, or a whole number as text. No other number: decoding may have rounded it, so two ids could become one."""
    if type(value) is int:
        return str(value)
    return value if type(value) is str and value and rules.HALF_PAIR.search(value) is None else None


def moment(value: Any) -> str | None:
    """A stamp in the form of RFC 3339, from a text or a number: s, ms, µs or ns since 1970, as its size tells."""
    if type(value) is str:
        if _ZONED.fullmatch(value) and rules.is_date_time(value):
            return value
        return leading_stamp(value, datetime.now(UTC)) or (value if rules.is_date_time(value) else None)
    if type(value) is int and _MILLISECONDS[0] <= value < _MILLISECONDS[1]:  # what JavaScript writes
        seconds, milliseconds = divmod(value, 1000)
        return _second(seconds) + _FRACTIONS[milliseconds]
    if type(value) not in (int, float) or not 0 <= value < 10**20:
        return None
    factor = next((factor for limit, factor in _MICROSECONDS if value < limit), None)
    microseconds = round(value * factor) if factor else value // 1000
    try:
        return datetime.fromtimestamp(microseconds / 10**6, UTC).isoformat(timespec="microseconds")
    except (OverflowError, ValueError, OSError):
        return None


@functools.lru_cache(maxsize=1)  # many lines in each millisecond
def at(milliseconds: int) -> str:
    """A moment, given in milliseconds since 1970."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


@functools.lru_cache(maxsize=16)  # many lines share a second, and lines that arrive together share a few seconds
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:-6]
