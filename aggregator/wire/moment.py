"""Moments (milliseconds since 1970, UTC) to RFC 3339, and from the forms that people type."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from aggregator.wire.rules import is_date_time

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_AGE: Final = re.compile(r"([0-9]{1,9})([smhd])")
_UNIT_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def shown(milliseconds: int) -> str:
    """A moment in the form of RFC 3339, in UTC."""
    text = (_EPOCH + timedelta(milliseconds=milliseconds)).isoformat(timespec="milliseconds")
    return f"{text[:-6]}Z"


def read(text: str, now: int) -> int | None:
    """Read ``NOW``, a date and time, or an age such as ``10m`` (s, m, h, d). None if the text is none of these."""
    if text.upper() == "NOW":
        return now
    if age := _AGE.fullmatch(text):
        return max(0, now - int(age[1]) * _UNIT_MS[age[2]])
    if not is_date_time(text):
        return None
    leap_ms = 0
    try:
        found = datetime.fromisoformat(text.upper())
    except ValueError:  # a leap second: the same moment as the second after it
        found = datetime.fromisoformat(text.upper().replace(":60", ":59", 1))
        leap_ms = 1000  # added to the result, because ``found`` may be the last second that a datetime can hold
    return ((found if found.tzinfo else found.replace(tzinfo=UTC)) - _EPOCH) // _MILLISECOND + leap_ms
