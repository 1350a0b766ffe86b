"""The date and time in front of a line of text."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

from aggregator.wire import rules

# What may precede the date: a syslog priority, the version 1 of RFC 5424, a bracket. A blank may precede the zone.
_BEFORE: Final = r"\s*(?:<\d{1,3}>(?:1 )?)?\[?"
_FRACTION: Final = r"(?:[.,](?P<fraction>\d{1,9})\d*)?"
_ZONE: Final = r"(?P<zone> ?(?:Z|UTC|GMT)\b| ?[+-]\d\d:?\d\d\b|[+-]\d\d\b)?"
_ISO: Final = re.compile(
    rf"{_BEFORE}(?P<date>\d{{4}}-\d\d-\d\d)[Tt ](?P<time>\d\d:\d\d(?::\d\d)?)(?![\d:]){_FRACTION}{_ZONE}", re.IGNORECASE
)
_BASIC: Final = re.compile(
    rf"{_BEFORE}(?P<date>\d{{8}})T(?P<time>\d{{6}}|\d{{4}})(?!\d){_FRACTION}{_ZONE}", re.IGNORECASE
)
_SYSLOG: Final = re.compile(
    rf"{_BEFORE}(?P<month>[A-Z][a-z]{{2}}) (?P<day>[ \d]\d) (?P<time>\d\d:\d\d:\d\d)(?![\d:]){_FRACTION}"
)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_LONGEST: Final = 80


def leading_stamp(line: str, last_written: datetime) -> str | None:
    """The stamp in front of a line, in the form of RFC 3339. It may be one of ISO 8601, RFC 3339, or syslog (RFC 3164).

    Syslog writes `Nov 22 10:00:00`. A stamp without a zone is in local time. A stamp without a year gets the latest
    year with which it is at most a day later than ``last_written``, the time when the line's file was last written.
    """
    head = line[:_LONGEST]
    if match := _ISO.match(head):
        return _assemble(match["date"], match["time"], match["fraction"], match["zone"])
    if match := _SYSLOG.match(head):
        return _with_year(match, last_written)
    if match := _BASIC.match(head):
        date, time = match["date"], match["time"]
        return _assemble(
            f"{date[:4]}-{date[4:6]}-{date[6:]}",
            ":".join(time[i : i + 2] for i in range(0, len(time), 2)),
            match["fraction"],
            match["zone"],
        )
    return None


def _with_year(match: re.Match[str], last_written: datetime) -> str | None:
    if match["month"] not in _MONTHS:
        return None
    month = _MONTHS.index(match["month"]) + 1
    latest = last_written + timedelta(days=1)
    for year in range(latest.year, latest.year - 8, -1):  # 29 February may be that long ago
        stamp = _assemble(f"{year}-{month:02}-{int(match['day']):02}", match["time"], match["fraction"], None)
        if stamp and datetime.fromisoformat(stamp.replace(":60", ":59")) <= latest:
            return stamp
    return None


def _assemble(date: str, time: str, fraction: str | None, zone: str | None) -> str | None:
    """None if there is no such day or time."""
    if len(time) == 5:
        time += ":00"
    stamp = f"{date}T{time}"
    try:
        local = datetime.fromisoformat(stamp.replace(":60", ":59"))
        stamp += (f".{fraction}" if fraction else "") + _spell(zone, local)
    except (ValueError, OverflowError):
        return None
    return stamp if rules.is_date_time(stamp) else None


def _spell(zone: str | None, local: datetime) -> str:
    if zone is None:
        offset = f"{local.astimezone():%z}"[:5]
    elif zone[-1].isdigit():
        offset = zone.strip().replace(":", "").ljust(5, "0")
    else:
        return "Z"
    return f"{offset[:3]}:{offset[3:]}"
