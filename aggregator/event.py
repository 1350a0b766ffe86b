"""What an event is: the one place where event JSON is decoded and judged.

Rules that hold here:

- A valid event keeps the bytes it was sent as. Nothing is ever re-encoded, so a payload comes back value for
  value: a 30-digit integer, ``1.10`` and ``-0.0`` keep their digits (orjson alone would turn them into floats).
- An event is judged completely before it may enter a batch, so that one bad event never harms its neighbours.
- Plain events, as nearly all are, are judged many at a time, for a step of Python's for each costs more than what it
  looks at; where one of them is not plain, each is judged by itself, and that says what is wrong.
- No sockets, no database: this module imports neither asyncio nor sqlite3.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Any, Final, Self

import orjson

MAX_NAME_CHARS = 255
"""Longest topic, event_id and source in characters (the length of a file name, a syslog tag, an SQL ``varchar``)."""

MAX_DEPTH = 250
"""Deepest nesting of one event. It comes back two levels deeper, inside a reply and its array of events, and has to
be readable there: orjson writes 254 levels, jq 1.6 reads 256."""

MAX_BATCH_EVENTS = 10_000
"""Most events in one batch line: more than fit into a mebibyte. Judging them takes the loop about 40 ms."""

# The shortest line that can nest deeper than that: a bracket opened and closed for each level.
_SAFE_BYTES = 2 * MAX_DEPTH

# The longest ISO 8601 form accepted: 2026-11-22T10:00:00.123456789+00:00:00.123456, with room to spare.
_MAX_TIMESTAMP_CHARS = 64

_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
# Strings, and whatever may hold a number. Possessive: of an unterminated string each byte is looked at once.
_STRING_OR_WORD = re.compile(rb'("(?:[^"\\]|\\.)*+"?)|[-+.\w]+')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')
_SPACE = re.compile(r"[ \t\r\n]*")
_OPEN_BRACE = b"{"[0]
_first = itemgetter(0)
_separator = itemgetter(10)  # between a date and a time
_fields = itemgetter("topic", "event_id", "source", "timestamp", "payload")
_blake2s = hashlib.blake2s
_parse_iso = datetime.fromisoformat

MAX_KNOWN_TOPICS: Final = 4096
"""Topics that are kept as one object each. Beyond so many it is begun anew."""

_topics: dict[str, str] = {}

# Only finds where a value ends inside JSON that orjson has accepted. Numbers stay text: int() refuses 4,301 digits.
_find_end = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode


DIGEST_BYTES: Final = 32
KEY_BYTES: Final = 16
"""How much of a key's digest counts. Of 10^12 keys two share 128 bits with a probability of 1 in 10^15. To make a
key that collides with a given one takes 2^128 attempts, a pair of one's own 2^64."""


@dataclass(slots=True)
class Event:
    """One valid event: its key, the JSON object it was sent as (UTF-8, byte for byte), and its key's digest."""

    topic: str
    event_id: str
    json: bytes
    digest: bytes

    @classmethod
    def of(cls, topic: str, event_id: str, json: bytes) -> Event:
        """An event with the digest of its key."""
        return cls(topic, event_id, json, digest(topic, event_id))


@dataclass(slots=True)
class Events:
    """Valid events in their order, a column for each part of them: what is done to a column is one step of Python's."""

    topics: list[str] = field(default_factory=list)
    event_ids: list[str] = field(default_factory=list)
    json: list[bytes] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    """The length of all events' JSON."""

    @classmethod
    def of(cls, events: Iterable[Event]) -> Events:
        """These events."""
        made = cls()
        for event in events:
            made.append(event)
        return made

    def __len__(self) -> int:
        return len(self.json)

    def __iter__(self) -> Iterator[Event]:
        return map(Event, self.topics, self.event_ids, self.json, self.digests)

    def __iadd__(self, more: Events) -> Self:
        self.topics += more.topics
        self.event_ids += more.event_ids
        self.json += more.json
        self.digests += more.digests
        self.size_bytes += more.size_bytes
        return self

    def append(self, event: Event) -> None:
        """Add one at the end."""
        self.topics.append(event.topic)
        self.event_ids.append(event.event_id)
        self.json.append(event.json)
        self.digests.append(event.digest)
        self.size_bytes += len(event.json)


class InvalidEvent(Exception):
    """An event that is certainly not stored.

    ``code`` is one of the protocol's stable words, ``detail`` says what is wrong and where, for people. ``topic``
    and ``event_id`` are given where they could be read.
    """

    def __init__(self, code: str, detail: str, topic: str | None = None, event_id: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.topic = topic
        self.event_id = event_id


def digest(topic: str, event_id: str) -> bytes:
    """What a key is looked up by. The first KEY_BYTES of it count; they are cut off where that costs nothing.

    A name holds no control character, so that the line feed keeps the two apart. BLAKE2s is the fastest of Python's
    cryptographic digests on a text of this length.
    """
    return _blake2s(f"{topic}\n{event_id}".encode()).digest()


def read_event_id(json: bytes) -> str:
    """The event_id of a valid event (of a repeated name the last one counts, as when it was judged)."""
    event_id: str = _decode(json)["event_id"]
    return event_id


def parse_plain(lines: Sequence[bytes | None]) -> Events | None:
    """Read lines that are all plain events. None says nothing of any of them: ``parse`` is to judge each by itself."""
    try:
        if set(map(_first, lines)) != {_OPEN_BRACE}:  # type: ignore[arg-type]
            return None
        return _plain(list(map(orjson.loads, lines)), lines)  # type: ignore[arg-type]
    except (IndexError, TypeError, orjson.JSONDecodeError):  # an empty line, none at all, no JSON
        return None


def _plain(values: list[Any], texts: Sequence[bytes]) -> Events | None:
    """The events that these values are, unless one of them is out of the ordinary, or is none."""
    try:
        topics, event_ids, sources, timestamps, payloads = zip(*map(_fields, values), strict=True)
        names = topics + event_ids + sources
        lengths = set(map(len, names))
        moments = set(timestamps)
        sizes = list(map(len, texts))
        if (
            not "".join(names).isprintable()  # and so, all are strings
            or min(lengths) == 0
            or max(lengths) > MAX_NAME_CHARS
            or set(map(type, payloads)) != {dict}
            or not set(map(_separator, moments)).issubset("Tt ")
            or max(map(len, moments)) > _MAX_TIMESTAMP_CHARS
            or (max(sizes) > _SAFE_BYTES and any(map(_is_too_deep, texts)))
        ):
            return None
        for moment in moments:
            _parse_iso(moment)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    digests = [
        _blake2s(f"{topic}\n{event_id}".encode()).digest() for topic, event_id in zip(topics, event_ids, strict=True)
    ]
    return Events(_one_of_each(topics), list(event_ids), list(texts), digests, sum(sizes))


def _one_of_each(topics: Iterable[str]) -> list[str]:
    """The same topics, each the same object whenever it comes: little memory to touch, and its hash is known."""
    if len(_topics) > MAX_KNOWN_TOPICS:
        _topics.clear()
    return list(map(_topics.setdefault, topics, topics))


def parse(line: bytes) -> Event | list[Event | InvalidEvent]:
    """Read a line that starts with ``{`` or ``[``: one event, or the batch it holds, each member judged by itself.

    Raises InvalidEvent when the line as a whole is no JSON, or is neither an event nor a batch.
    """
    value = _decode(line)
    if type(value) is dict and ("topic" in value or "events" not in value):
        return _check(value, line)
    return _parse_batch(value, line)


def _decode(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        failure = error
    if failure.msg.startswith("number is infinity"):
        # A number too large for a double is still a number, and its digits are kept: judge the rest without it.
        try:
            return orjson.loads(_STRING_OR_WORD.sub(_blank_number, line))
        except orjson.JSONDecodeError as error:
            failure = error
    if failure.msg.startswith("depth limit"):
        raise InvalidEvent("too_deep", _TOO_DEEP)
    if failure.msg.startswith("str is not valid UTF-8"):
        raise InvalidEvent("bad_json", f"not valid UTF-8 at byte {_first_bad_byte(line)}")
    raise InvalidEvent("bad_json", f"{failure.msg} at character {failure.pos + 1}")


def _blank_number(match: re.Match[bytes]) -> bytes:
    return match[0] if match[1] or not _NUMBER.fullmatch(match[0]) else b"0"


def _first_bad_byte(line: bytes) -> int:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return error.start + 1
    return 1


def _parse_batch(value: Any, line: bytes) -> list[Event | InvalidEvent]:
    text = line.decode()
    start = 0
    if type(value) is dict:
        if len(value) > 1:
            other = next(name for name in value if name != "events")
            raise InvalidEvent("bad_event", f"{_shorten(other)!r}: a batch object holds nothing but events")
        value = value["events"]
        start = _last_member(text)
    if type(value) is not list:
        raise InvalidEvent("bad_event", f"events: expected an array, got {_kind(value)}")
    if len(value) > MAX_BATCH_EVENTS:
        raise InvalidEvent("bad_event", f"events: at most {MAX_BATCH_EVENTS} in a batch, got {len(value)}")
    try:
        members = [text[slice(*span)].encode() for span in _elements(text, start)]
    except RecursionError:
        raise InvalidEvent("too_deep", _TOO_DEEP) from None
    if members and (plain := _plain(value, members)):
        return list(plain)
    return [_judge(member, json) for member, json in zip(value, members, strict=True)]


def _judge(value: Any, json: bytes) -> Event | InvalidEvent:
    try:
        return _check(value, json)
    except InvalidEvent as invalid:
        return invalid.with_traceback(None)  # which would keep this call's every object alive


def _last_member(text: str) -> int:
    """Where the value of the object's last member starts (a repeated name counts the last time, as in orjson)."""
    start = 0
    index = _skip_space(text, 1)
    while True:
        _, index = _find_end(text, index)
        start = _skip_space(text, _skip_space(text, index) + 1)
        try:
            _, index = _find_end(text, start)
        except RecursionError:
            raise InvalidEvent("too_deep", _TOO_DEEP) from None
        index = _skip_space(text, index)
        if text[index] == "}":
            return start
        index = _skip_space(text, index + 1)


def _elements(text: str, start: int) -> Iterator[tuple[int, int]]:
    """The spans of the members of the array that opens at ``start``, in valid JSON."""
    index = _skip_space(text, start + 1)
    while text[index] != "]":
        _, end = _find_end(text, index)
        yield index, end
        index = _skip_space(text, end)
        if text[index] == ",":
            index = _skip_space(text, index + 1)


def _skip_space(text: str, index: int) -> int:
    match = _SPACE.match(text, index)
    assert match is not None
    return match.end()


def _check(fields: Any, json: bytes) -> Event:
    if type(fields) is not dict:
        if _is_too_deep(json):
            raise InvalidEvent("too_deep", _TOO_DEEP)
        raise InvalidEvent("bad_event", f"expected an object, got {_kind(fields)}")
    topic, event_id = fields.get("topic"), fields.get("event_id")
    if (
        _is_name(topic)
        and _is_name(event_id)
        and _is_name(fields.get("source"))
        and type(fields.get("payload")) is dict
        and is_date_time(fields.get("timestamp"))
        and not _is_too_deep(json)
    ):
        return Event.of(topic, event_id, json)  # type: ignore[arg-type]
    raise _find_fault(fields, topic, event_id)


def _is_name(value: Any) -> bool:
    # isprintable() is the cheap test; it also says no to some harmless characters, like a no-break space.
    return (
        type(value) is str
        and 0 < len(value) <= MAX_NAME_CHARS
        and (value.isprintable() or _CONTROL.search(value) is None)
    )


def _find_fault(fields: dict[str, Any], topic: Any, event_id: Any) -> InvalidEvent:
    """The first thing that is wrong with an event that is known to be invalid."""
    detail = (
        _name_fault(fields, "topic")
        or _name_fault(fields, "event_id")
        or _timestamp_fault(fields)
        or _name_fault(fields, "source")
        or _payload_fault(fields)
    )
    code = "bad_event" if detail else "too_deep"
    return InvalidEvent(code, detail or _TOO_DEEP, _readable(topic), _readable(event_id))


def _name_fault(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if _is_name(value):
        return None
    if type(value) is not str:
        return _expected(fields, name, "a string")
    if match := _CONTROL.search(value):
        return f"{name}: control character U+{ord(match[0]):04X} at character {match.start() + 1}"
    return f"{name}: expected 1 to {MAX_NAME_CHARS} characters, got {len(value)}"


def _timestamp_fault(fields: dict[str, Any]) -> str | None:
    value = fields.get("timestamp")
    if is_date_time(value):
        return None
    if type(value) is not str:
        return _expected(fields, "timestamp", "a string")
    return f"timestamp: expected an ISO 8601 date and time, got {_shorten(value)!r}"


def _payload_fault(fields: dict[str, Any]) -> str | None:
    return None if type(fields.get("payload")) is dict else _expected(fields, "payload", "an object")


def is_date_time(text: Any) -> bool:
    """Whether a value is an ISO 8601 date and time: `T`, `t` or a space between, any zone or none, any fraction."""
    # A date alone has at most 10 characters, and fromisoformat() takes any separator.
    if type(text) is not str or not 10 < len(text) <= _MAX_TIMESTAMP_CHARS:
        return False
    if text[10] not in "Tt " and text[8] not in "Tt ":
        return False
    if _is_iso(text):
        return True
    # Two forms that RFC 3339 allows and fromisoformat() refuses: a lower-case zone, and a leap second.
    respelt = text.upper()
    if text[17:19] == "60":
        respelt = respelt[:17] + "59" + respelt[19:]
    return _is_iso(respelt)


def _is_iso(text: str) -> bool:
    try:
        _parse_iso(text)
    except ValueError:
        return False
    return True


def _is_too_deep(json: bytes) -> bool:
    if len(json) <= _SAFE_BYTES or json.count(b"{") + json.count(b"[") <= MAX_DEPTH:
        return False  # however its brackets stand
    depth = deepest = 0
    for match in _BRACKETS.finditer(json):
        token = match[0]
        if token in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif token in b"}]":
            depth -= 1
    return deepest > MAX_DEPTH


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
    """A key that may stand in a reply: a string of bounded length."""
    return value if type(value) is str and len(value) <= MAX_NAME_CHARS else None


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"
