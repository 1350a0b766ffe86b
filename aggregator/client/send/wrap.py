"""Lines to events: text becomes the payload ``{"message": line}``, a JSON object becomes the payload byte for byte."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import orjson

from aggregator.wire import Code, Rejection
from aggregator.wrap import fields
from aggregator.wrap.stamp import leading_stamp

_BLANK: Final = b" \t\r"


class Wrap(Protocol):
    """Makes an event of a line, or rejects the line."""

    def wrap(self, content: bytes, event_id: str, last_written: datetime | None) -> bytes | Rejection:
        """The event of one line. ``last_written`` is when the line's file was last written; None means now."""

    def sample(self) -> bytes:
        """An event with the same topic and source as all others, as far as they are known."""


@dataclass(slots=True)
class TextEvents:
    """Makes events of lines of text."""

    topic: str | None
    source: str
    takes_stamps: bool = False
    """Whether the stamp in front of a line counts as its time, instead of the time of sending."""

    def wrap(self, content: bytes, event_id: str, last_written: datetime | None) -> bytes:
        message = content.decode(errors="backslashreplace")
        stamp = leading_stamp(message, last_written or datetime.now(UTC)) if self.takes_stamps else None
        return _event(
            self.topic, event_id, stamp or fields.at(time.time_ns() // 10**6), self.source, {"message": message}
        )

    def sample(self) -> bytes:
        return self.wrap(b"", "e", None)


@dataclass(slots=True)
class JsonEvents:
    """Makes events of lines that are JSON objects, and of other lines as if they were text.

    The attributes name the fields that are taken from an object. A name with dots may also name a field of a nested
    object. A value that a line does not have, or that is neither text nor a number, is made as for text.
    """

    text: TextEvents
    """Its topic is for lines that name none; if it has no topic, such lines are rejected."""
    id_field: str | None = None
    time_field: str | None = None
    topic_field: str | None = None

    def wrap(self, content: bytes, event_id: str, last_written: datetime | None) -> bytes | Rejection:
        content = content.strip(_BLANK)
        members = _object(content)
        topic = _text(members, self.topic_field) or self.text.topic
        if topic is None:
            return Rejection(Code.BAD_EVENT, f"no {self.topic_field} to take the topic from; not sent")
        if members is None:
            return replace(self.text, topic=topic).wrap(content, event_id, last_written)
        return _event(
            topic,
            _text(members, self.id_field) or event_id,
            _moment(members, self.time_field) or fields.at(time.time_ns() // 10**6),
            self.text.source,
            orjson.Fragment(content),
        )

    def sample(self) -> bytes:
        return replace(self.text, topic="t" if self.text.topic is None else self.text.topic).sample()


def _event(topic: str | None, event_id: str, timestamp: str, source: str, payload: Any) -> bytes:
    return orjson.dumps(
        {"topic": topic, "event_id": event_id, "timestamp": timestamp, "source": source, "payload": payload}
    )


def _object(content: bytes) -> dict[str, Any] | None:
    if not content.startswith(b"{"):
        return None
    try:
        value = fields.decode(content)
    except ValueError:
        return None
    return value if type(value) is dict else None


def _text(members: dict[str, Any] | None, name: str | None) -> str | None:
    return None if name is None else fields.text(fields.find(members, name))


def _moment(members: dict[str, Any] | None, name: str | None) -> str | None:
    return None if name is None else fields.moment(fields.find(members, name))
