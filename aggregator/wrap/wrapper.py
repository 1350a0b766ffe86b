"""Texts to events. Every text becomes one event; an array of objects becomes one event for each member."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final

import orjson

from aggregator import json_text
from aggregator.event import Event, Events, digests
from aggregator.json_text import NotJson, TooDeep
from aggregator.wire import rules
from aggregator.wrap import fields, flatted, syslog
from aggregator.wrap.framing import Part, Text
from aggregator.wrap.topic import TopicTemplate

TIME_NAMES: Final = ("timestamp", "@timestamp", "time", "ts", "date", "written_at", "asctime", "startTime")
"""The fields in which programs put the time; the first that holds a time counts. startTime is log4js's."""

SOURCE_NAMES: Final = ("source", "hostname", "host", "serverName", "logsource")
"""The fields in which programs put the host; the first that holds a name counts."""

EARLIEST_S: Final = 10**8
"""A smaller number is a duration, not a time. As a time, this number is in 1973."""

_BLANKS: Final = b" \t\r\n"
_OPEN_BRACE, _OPEN_BRACKET = b"{["
_BACKSLASH: Final = re.compile(rb"\\")
_STARTS_OF_SYSLOG: Final = frozenset("<0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
"""The first characters of a priority, of a version or a year, and of a month."""
_NUMBERS: Final = (int, float)  # bool is neither
_ID_BYTES: Final = 16
_IDS_AT_ONCE: Final = 64
_VERSION_4: Final = bytes(0x40 | byte & 0x0F for byte in range(256))
_VARIANT: Final = bytes(0x80 | byte & 0x3F for byte in range(256))


@dataclass(frozen=True, slots=True)
class Defaults:
    """What an event gets if its text does not provide it."""

    topic: TopicTemplate
    source: str
    id_field: str | None = None
    """The field of a JSON object that holds the event_id. If this is None, or the object has no such field, the
    event_id is a random UUID."""


class Wrapper:
    """Makes events of the texts of one stream."""

    def __init__(self, defaults: Defaults) -> None:
        self._defaults = defaults
        self._cut: tuple[str, list[str]] | None = None  # of the text whose parts arrive: its id; topic, time, source
        self._topics: list[str] = []
        self._ids: list[str] = []
        self._json: list[bytes] = []
        self._fresh: Iterator[str] = iter(())  # random ids
        self._now = ""
        self._today = date.min

    def wrap(self, texts: Sequence[Text]) -> Events:
        """The events of these texts, in order. A blank text gives no event."""
        if (plain := _plain(texts)) is not None:
            return plain
        now = datetime.now(UTC)
        self._now = now.isoformat(timespec="milliseconds")
        self._today = now.date()
        for text in texts:
            if type(text) is not bytes:
                self._part(text)  # type: ignore[arg-type]
            elif content := text.strip(_BLANKS):
                first = content[0]
                if first == _OPEN_BRACE:
                    if not self._object(content):
                        self._line(text)
                elif first != _OPEN_BRACKET or not self._array(content):
                    self._line(text)
        made = Events(self._topics, self._ids, self._json, digests(self._topics, self._ids), sum(map(len, self._json)))
        self._topics, self._ids, self._json = [], [], []
        return made

    # --- JSON

    def _object(self, content: bytes) -> bool:
        """Take a JSON object as an event, a batch or a payload; return whether it can be one of these."""
        try:
            value = orjson.loads(content)
        except orjson.JSONDecodeError:
            try:
                value = fields.decode(content)
            except ValueError:
                return False
        if b"\n" in content:
            content = content.replace(b"\n", b" ")
        if "event_id" in value or "events" in value:
            found = rules.parse(content)
            if isinstance(found, Event):
                self._add(found.topic, found.event_id, found.json)
                return True
            members = found if isinstance(found, list) else []
            events = [member for member in members if isinstance(member, Event)]
            if events and len(events) == len(members):
                for event in events:
                    self._add(event.topic, event.event_id, event.json)
                return True
        return self._payload(value, content)

    def _payload(self, value: dict[str, Any], content: bytes) -> bool:
        """Take an object as a payload; return False if it is nested too deeply."""
        timestamp = source = None
        for name in TIME_NAMES:
            if name in value and (timestamp := _moment(value[name])):
                break
        for name in SOURCE_NAMES:
            if name in value and (source := _name(value[name])):
                break
        id_field = self._defaults.id_field
        given = _name(fields.find(value, id_field)) if id_field else None
        topic = self._defaults.topic.constant or self._defaults.topic.fill(value)
        return self._make(content, topic, timestamp or self._now, source or self._defaults.source, given)

    def _array(self, content: bytes) -> bool:
        """Take an array of JSON objects, or an event of log4js; return whether it is one of these."""
        try:
            values = json_text.decode(content)
            if 0 < len(values) <= rules.MAX_BATCH_EVENTS and set(map(type, values)) == {dict}:
                members = [member.encode() for member in json_text.elements(content.decode(), 0)]
                for member in members:
                    if not self._object(member):
                        self._line(member)
                return True
            if not values or type(values[0]) is not dict:
                return False
            event = flatted.read(orjson.loads(content), len(content))
            return event is not None and self._payload(event, orjson.dumps(event))
        except (NotJson, TooDeep, ValueError, TypeError):  # the last two: orjson cannot read it, or not write it again
            return False

    # --- text

    def _line(self, text: bytes) -> None:
        line, escaped = _readable(text)
        payload, *head = self._read(line)
        if escaped:
            payload["escaped"] = True
        self._make(orjson.dumps(payload), *head)

    def _read(self, line: str) -> tuple[dict[str, Any], str, str, str]:
        """The payload, topic, time and source of a text."""
        defaults = self._defaults
        found = syslog.read(line, self._today) if line[:1] in _STARTS_OF_SYSLOG else None
        if found is None:
            payload = {"message": line}
            return payload, defaults.topic.constant or defaults.topic.fill(payload), self._now, defaults.source
        return (
            found.payload,
            defaults.topic.constant or defaults.topic.fill(found.payload),
            found.timestamp or self._now,
            found.host or defaults.source,
        )

    def _part(self, part: Part) -> None:
        """Take a part of a text. All parts get the topic, time and source of the first, as of a syslog line's head."""
        line, escaped = _readable(part.content)
        payload: dict[str, Any] = {"message": line}
        if part.offset == 0 or self._cut is None:
            payload, *head = self._read(line)
            self._cut = self._new_id(), head
        text_id, head = self._cut
        if escaped:
            payload["escaped"] = True
        payload["cut"] = {"text": text_id, "offset": part.offset, "more": part.more}
        if not part.more:
            self._cut = None
        self._make(orjson.dumps(payload), *head)

    def _make(self, payload: bytes, topic: str, timestamp: str, source: str, event_id: str | None = None) -> bool:
        """Make an event around a payload; return False if it is nested too deeply."""
        if event_id is None:
            event_id = quoted_id = self._new_id()
        else:
            quoted_id = orjson.dumps(event_id).decode()[1:-1]
        head = (
            f'{{"topic":{_quoted(topic)},"event_id":"{quoted_id}","timestamp":"{timestamp}",'
            f'"source":{_quoted(source)},"payload":'
        )
        json = b"%b%b}" % (head.encode(), payload)
        if len(json) > json_text.SHALLOW_BYTES and json_text.is_too_deep(json):
            return False
        self._topics.append(topic)
        self._ids.append(event_id)
        self._json.append(json)
        return True

    def _add(self, topic: str, event_id: str, json: bytes) -> None:
        self._topics.append(topic)
        self._ids.append(event_id)
        self._json.append(json)

    def _new_id(self) -> str:
        try:
            return next(self._fresh)
        except StopIteration:
            self._fresh = _random_ids()
            return next(self._fresh)


def _random_ids() -> Iterator[str]:
    """Random UUIDs (RFC 9562, section 5.4), enough of them to be worth the system call."""
    digits = bytearray(os.urandom(_ID_BYTES * _IDS_AT_ONCE))
    digits[6::_ID_BYTES] = digits[6::_ID_BYTES].translate(_VERSION_4)
    digits[8::_ID_BYTES] = digits[8::_ID_BYTES].translate(_VARIANT)
    text = digits.hex()
    size = 2 * _ID_BYTES
    return iter([text[start : start + size] for start in range(0, len(text), size)])


def _plain(texts: Sequence[Text]) -> Events | None:
    """The events that these texts are, if all are plain. Such a stream costs what it costs on the silent port."""
    first = texts[0]
    if type(first) is not bytes or b'"event_id"' not in first or any(type(text) is not bytes for text in texts):
        return None
    if any(b"\n" in text for text in texts):  # type: ignore[operator]
        return None  # possible between the tokens of JSON, if the texts do not end with line feeds
    return rules.parse_plain(texts)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=4096)  # few topics and sources, many texts
def _quoted(name: str) -> str:
    """A name as JSON."""
    return orjson.dumps(name).decode()


def _name(value: Any) -> str | None:
    """The value as text, if it may be a source or an id."""
    found = value if type(value) is str else fields.text(value)
    return found if found is not None and rules.is_name(found) else None


def _moment(value: Any) -> str | None:
    if type(value) is str or (type(value) in _NUMBERS and value >= EARLIEST_S):
        return fields.moment(value)
    return None


def _readable(text: bytes) -> tuple[str, bool]:
    r"""Decode a text; return also whether it was escaped: a byte that is not UTF-8 as ``\xNN``, and ``\`` as ``\\``."""
    try:
        return text.decode(), False
    except UnicodeDecodeError:
        return _BACKSLASH.sub(rb"\\\\", text).decode(errors="backslashreplace"), True
