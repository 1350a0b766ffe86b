"""JSON to events: what makes an event valid, and what is wrong with one that is not.

Rules that hold here:

- An event is judged completely before it may enter a batch, so that one bad event never harms its neighbours.
- Nearly all events are plain. Plain events are judged many at a time, because each step of Python has a fixed cost that
  exceeds that of the check. If one line of a piece is not plain, ``parse`` judges each line by itself and says what is
  wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date
from operator import itemgetter
from typing import Any, Final

import orjson

from aggregator import json_text
from aggregator.event import Event, Events, digests
from aggregator.json_text import NotJson, TooDeep
from aggregator.wire import Code, Rejection

MAX_NAME_CHARS: Final = 255
"""Longest topic, event_id and source in characters (the length of a file name, a syslog tag, an SQL ``varchar``)."""

MAX_BATCH_EVENTS: Final = 10_000
"""Maximum events in one batch line: more than fit into a mebibyte. Judging them takes the loop about 40 ms."""

MAX_KNOWN_TOPICS: Final = 4096
"""How many topics are interned, as one object each. Past this number the collection is cleared."""

_MAX_TIMESTAMP_CHARS = 64  # a fraction of a second may have any number of digits

FORBIDDEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that no name may have: control characters, and those that HALF_PAIR finds."""

HALF_PAIR: Final = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which no text encoding can represent."""

_OPEN_BRACE = b"{"[0]
_first = itemgetter(0)

_CLOCK = r"(?P<hour>[01]\d|2[0-3])(?P<colon>:?)(?P<minute>[0-5]\d)(?:(?P=colon)(?P<second>[0-5]\d|60)(?:[.,]\d+)?)?"
_ZONE = r"(?: ?(?:[Zz]|(?P<sign>[+-])(?P<zone_hour>[01]\d|2[0-3])(?::?(?P<zone_minute>[0-5]\d))?))?"
_DATE_TIME = re.compile(
    rf"(?P<date>\d{{4}}-\d\d-\d\d|\d{{8}}|\d{{4}}-W\d\d-\d|\d{{4}}W\d{{3}})[Tt ]{_CLOCK}{_ZONE}", re.ASCII
)
# The usual forms, a subset of the above, matched in half the time.
_USUAL = (
    r"\d{4}-\d\d-\d\d[Tt ](?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:[.,]\d+)?)?"
    r"(?:[Zz]|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)?"
)
_USUAL_DATE_TIME = re.compile(_USUAL, re.ASCII)
_USUAL_DATE_TIMES = re.compile(rf"(?:{_USUAL}\n)*+", re.ASCII)
_DATE_CHARS = len("2026-11-22")
_DAY_MINUTES = 24 * 60

_fields = itemgetter("topic", "event_id", "source", "timestamp", "payload")
_parse_date = date.fromisoformat
_too_deep = json_text.is_too_deep

_NO_PAYLOAD: Final[dict[str, Any]] = {}  # a missing payload counts as this, and the event is stored as it was sent

_topics: dict[str, str] = {}


def parse_plain(lines: Sequence[bytes | None]) -> Events | None:
    """Read lines that are all plain events. None if any line is not plain: the caller must ``parse`` each."""
    try:
        if set(map(_first, lines)) != {_OPEN_BRACE}:  # type: ignore[arg-type]
            return None
        return _plain(list(map(orjson.loads, lines)), lines)  # type: ignore[arg-type]
    except (IndexError, TypeError, orjson.JSONDecodeError):  # an empty line, an over-long line, no JSON
        return None


def _plain(values: list[Any], texts: Sequence[bytes]) -> Events | None:
    """The events that these values are; None if any value is unusual, or is not an event."""
    try:
        topics, event_ids, sources, timestamps, payloads = zip(*map(_fields, values), strict=True)
        names = topics + event_ids + sources
        lengths = set(map(len, names))
        moments = set(timestamps)
        sizes = list(map(len, texts))
        if (
            not "".join(names).isprintable()  # join also makes sure that all are strings
            or min(lengths) == 0
            or max(lengths) > MAX_NAME_CHARS
            or set(map(type, payloads)) != {dict}
            or max(map(len, moments)) > _MAX_TIMESTAMP_CHARS
            or not _USUAL_DATE_TIMES.fullmatch(lined_up := "\n".join([*moments, ""]))
            or lined_up.count("\n") != len(moments)
            or (max(sizes) > json_text.SHALLOW_BYTES and any(map(_too_deep, texts)))
        ):
            return None
        for day in {moment[:_DATE_CHARS] for moment in moments}:
            _parse_date(day)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return Events(_one_of_each(topics), list(event_ids), list(texts), digests(topics, event_ids), sum(sizes))


def _one_of_each(topics: Iterable[str]) -> list[str]:
    """The same topics, each as one shared object: less memory is touched, and the object already has its hash."""
    if len(_topics) > MAX_KNOWN_TOPICS:
        _topics.clear()
    return list(map(_topics.setdefault, topics, topics))


def parse(line: bytes) -> Event | list[Event | Rejection] | Rejection:
    """Read a line that starts with ``{`` or ``[``: one event, or the batch it holds, each member judged by itself."""
    try:
        value = json_text.decode(line)
        if type(value) is dict and ("topic" in value or "events" not in value):
            return _judge(value, line)
        return _parse_batch(value, line)
    except NotJson as error:
        return Rejection(Code.BAD_JSON, str(error))
    except TooDeep as error:
        return Rejection(Code.TOO_DEEP, str(error))


def _parse_batch(value: Any, line: bytes) -> list[Event | Rejection] | Rejection:
    text = line.decode()
    start: int | None = 0
    if type(value) is dict:
        if len(value) > 1:
            other = next(name for name in value if name != "events")
            return Rejection(Code.BAD_EVENT, f"{_shorten(other)!r}: a batch object holds nothing but events")
        value = value["events"]
        start = json_text.only_member(text)
    if start is None:
        return Rejection(Code.BAD_EVENT, "events: given more than once")
    if type(value) is not list:
        return Rejection(Code.BAD_EVENT, f"events: expected an array, got {_kind(value)}")
    if len(value) > MAX_BATCH_EVENTS:
        return Rejection(Code.BAD_EVENT, f"events: at most {MAX_BATCH_EVENTS} in a batch, got {len(value)}")
    members = [member.encode() for member in json_text.elements(text, start)]
    if members and (plain := _plain(value, members)):
        return list(plain)
    return [_judge(member, json) for member, json in zip(value, members, strict=True)]


def _judge(fields: Any, json: bytes) -> Event | Rejection:
    if type(fields) is not dict:
        if _too_deep(json):
            return Rejection(Code.TOO_DEEP, str(TooDeep()))
        return Rejection(Code.BAD_EVENT, f"expected an object, got {_kind(fields)}")
    topic, event_id = fields.get("topic"), fields.get("event_id")
    if (
        is_name(topic)
        and is_name(event_id)
        and is_name(fields.get("source"))
        and type(fields.get("payload", _NO_PAYLOAD)) is dict
        and is_date_time(fields.get("timestamp"))
        and not _too_deep(json)
    ):
        return Event.of(topic, event_id, json)  # type: ignore[arg-type]
    return _find_fault(fields, topic, event_id)


def is_name(value: Any) -> bool:
    """Whether a value may be a topic, an event_id or a source."""
    # isprintable() is the cheap test, but it also refuses some harmless characters, such as a no-break space.
    return (
        type(value) is str
        and 0 < len(value) <= MAX_NAME_CHARS
        and (value.isprintable() or FORBIDDEN.search(value) is None)
    )


def _find_fault(fields: dict[str, Any], topic: Any, event_id: Any) -> Rejection:
    """The first fault of an event that is known to be invalid."""
    detail = (
        _name_fault(fields, "topic")
        or _name_fault(fields, "event_id")
        or _timestamp_fault(fields)
        or _name_fault(fields, "source")
        or _payload_fault(fields)
    )
    code = Code.BAD_EVENT if detail else Code.TOO_DEEP
    return Rejection(code, detail or str(TooDeep()), _readable(topic), _readable(event_id))


def _name_fault(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if is_name(value):
        return None
    if type(value) is not str:
        return _expected(fields, name, "a string")
    if match := FORBIDDEN.search(value):
        kind = "control character" if match[0] < "\ud800" else "half of a surrogate pair"
        return f"{name}: {kind} U+{ord(match[0]):04X} at character {match.start() + 1}"
    return f"{name}: expected 1 to {MAX_NAME_CHARS} characters, got {len(value)}"


def _timestamp_fault(fields: dict[str, Any]) -> str | None:
    value = fields.get("timestamp")
    if is_date_time(value):
        return None
    if type(value) is not str:
        return _expected(fields, "timestamp", "a string")
    return f"timestamp: expected an ISO 8601 date and time, got {_shorten(value)!r}"


def _payload_fault(fields: dict[str, Any]) -> str | None:
    return None if type(fields.get("payload", _NO_PAYLOAD)) is dict else _expected(fields, "payload", "an object")


def is_date_time(text: Any) -> bool:
    """Whether a value is a date and time in a form of RFC 3339, or of ISO 8601 where nothing has to be guessed.

    ``T``, ``t`` or a space separates date and time. The date may be a week date, and may lack its hyphens. The time may
    lack its seconds, or its colons. A fraction of a second may follow a point or a comma. The zone is ``Z``, ``z``,
    ``+01:00``, ``+0100`` or ``+01``, with or without a space before it, or is missing. Second 60 is valid only at the
    end of a UTC day.
    """
    if type(text) is not str or len(text) > _MAX_TIMESTAMP_CHARS:
        return False
    try:
        if _USUAL_DATE_TIME.fullmatch(text):
            _parse_date(text[:_DATE_CHARS])
            return True
        if not (found := _DATE_TIME.fullmatch(text)):
            return False
        _parse_date(found["date"])
    except ValueError:
        return False
    if found["second"] != "60":
        return True
    east = int(found["zone_hour"] or 0) * 60 + int(found["zone_minute"] or 0)
    local = int(found["hour"]) * 60 + int(found["minute"])
    utc = local + east if found["sign"] == "-" else local - east
    return utc % _DAY_MINUTES == _DAY_MINUTES - 1


def _expected(fields: dict[str, Any], name: str, what: str) -> str:
    if name not in fields:
        return f"{name}: missing, expected {what}"
    return f"{name}: expected {what}, got {_kind(fields[name])}"


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _readable(value: Any) -> str | None:
    """The value, if a reply may repeat it: text of bounded length."""
    if type(value) is not str or len(value) > MAX_NAME_CHARS or HALF_PAIR.search(value):
        return None
    return value


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"
