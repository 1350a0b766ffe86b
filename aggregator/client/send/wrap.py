"""Lines to events: text becomes the payload ``{"message": line}``, a JSON object becomes the payload byte for byte."""

from __future__ import annotations

import functools
import json
import re
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import orjson

from aggregator.client.send.stamp import leading_stamp
from aggregator.wire import Code, Rejection, rules

_BLANK: Final = b" \t\r"
_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")  # no encoding of text has it
_MICROSECONDS: Final = ((10**11, 10**6), (10**14, 10**3), (10**17, 1))
"""How many microseconds the unit of a number has: numbers below 10^11 are seconds, and so on; above, nanoseconds."""


def _no_constant(name: str) -> None:
    raise ValueError(f"unexpected {name}")


# Takes what orjson refuses although it is JSON by its grammar: numbers too large for a double, half surrogate pairs.
_lenient: Final = json.JSONDecoder(parse_constant=_no_constant).decode


class Wrap(Protocol):
    """Makes an event of a line; a line that it cannot make one of is rejected."""

    def wrap(self, content: bytes, event_id: str, last_written: datetime | None) -> bytes | Rejection:
        """The event of one line. ``last_written`` is when the line's file was; None: now."""

    def sample(self) -> bytes:
        """An event with the same topic and source as all others, as far as they are known."""


@dataclass(slots=True)
class TextEvents:
    """Makes events of lines of text."""

    topic: str | None
    source: str
    takes_stamps: bool = False
    """Whether the stamp in front of a line counts, instead of the time of sending."""

    def wrap(self, content: bytes, event_id: str, last_written: datetime | None) -> bytes:
        message = content.decode(errors="backslashreplace")
        stamp = leading_stamp(message, last_written or datetime.now(UTC)) if self.takes_stamps else None
        return _event(self.topic, event_id, stamp or _now(time.time_ns() // 10**6), self.source, {"message": message})

    def sample(self) -> bytes:
        return self.wrap(b"", "e", None)


@dataclass(slots=True)
class JsonEvents:
    """Makes events of lines that are JSON objects; of other lines as if they were text.

    The fields say what is taken out of an object. A name with dots may also lead into objects in it. What a line does
    not have, or what is neither text nor a number, is made as for text.
    """

    text: TextEvents
    """Its topic is for lines that name none; without a topic they are rejected."""
    id_field: str | None = None
    time_field: str | None = None
    topic_field: str | None = None

    def wrap(self, content: bytes, event_id: str, last_written: datetime | None) -> bytes | Rejection:
        content = content.strip(_BLANK)
        fields = _object(content)
        topic = _text(_find(fields, self.topic_field)) or self.text.topic
        if topic is None:
            return Rejection(Code.BAD_EVENT, f"no {self.topic_field} to take the topic from; not sent")
        if fields is None:
            return replace(self.text, topic=topic).wrap(content, event_id, last_written)
        return _event(
            topic,
            _text(_find(fields, self.id_field)) or event_id,
            _time(_find(fields, self.time_field)) or _now(time.time_ns() // 10**6),
            self.text.source,
            orjson.Fragment(content),
        )

    def sample(self) -> bytes:
        return replace(self.text, topic="t" if self.text.topic is None else self.text.topic).sample()


def _event(topic: str | None, event_id: str, timestamp: str, source: str, payload: Any) -> bytes:
    return orjson.dumps(
        {"topic": topic, "event_id": event_id, "timestamp": timestamp, "source": source, "payload": payload}
    )


@functools.lru_cache(maxsize=1)  # many lines in each millisecond
def _now(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _object(content: bytes) -> dict[str, Any] | None:
    if not content.startswith(b"{"):
        return None
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            value = _lenient(content.decode())
        except (ValueError, RecursionError):
            return None
    return value if type(value) is dict else None


def _find(fields: Any, name: str | None) -> Any:
    if name is None or type(fields) is not dict:
        return None
    if name in fields:
        return fields[name]
    for part in name.split("."):
        if type(fields) is not dict:
            return None
        fields = fields.get(part)
    return fields


def _text(value: Any) -> str | None:
    """Text, or a whole number; no other number, because decoding may have changed it: ids would fall together."""
    if type(value) is int:
        return str(value)
    return value if type(value) is str and value and _HALF_PAIR.search(value) is None else None


def _time(value: Any) -> str | None:
    """A stamp, or a number: seconds, ms, µs or ns since 1970, as its size tells."""
    if type(value) is str:
        return leading_stamp(value, datetime.now(UTC)) or (value if rules.is_date_time(value) else None)
    if type(value) not in (int, float) or not 0 <= value < 10**20:
        return None
    factor = next((factor for limit, factor in _MICROSECONDS if value < limit), None)
    microseconds = round(value * factor) if factor else value // 1000
    try:
        return datetime.fromtimestamp(microseconds / 10**6, UTC).isoformat(timespec="microseconds")
    except (OverflowError, ValueError, OSError):
        return None
