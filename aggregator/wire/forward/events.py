r"""Entries to events: the rules by which a tag becomes a topic, and a time and a record become an event.

A well-formed entry is refused only if it is too long, nested too deeply, or takes too long to convert:

- ``topic`` is the tag. Characters that a topic cannot hold (control characters, bytes that are not UTF-8) are replaced
  by ``_``, an empty tag becomes ``untagged``, and a tag is cut at 255 characters. An event whose tag was changed so has
  the tag itself as ``tag``, escaped as ``values`` says;
- ``event_id`` is the chunk's name, a dot, and the entry's index in the chunk, from 0. Without a chunk, a UUID replaces
  its name. A name that is too long, or is not valid text, is replaced by its SHA-256. An option may name a field of the
  record to use instead;
- ``timestamp`` is the entry's time. If that is not a valid time, ``timestamp`` is the time of receipt, and the event
  has the entry's time as ``time``;
- ``source`` is the value of the record's field that an option names, otherwise the peer's address;
- ``payload`` is the record. A record that is not a map becomes ``{"record": …}``;
- ``metadata`` is the metadata of the entry (v1.5), unless that is empty. A ``metadata`` or a ``time`` that has to be
  escaped becomes ``{"escaped": …}``;
- ``"escaped": true`` says that the texts of the payload are escaped (``values``).
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

import orjson

from aggregator import json_text
from aggregator.event import Events, digests
from aggregator.wire import rules
from aggregator.wire.forward import NotForward, values
from aggregator.wire.forward.entries import Chunk

_UNTAGGED: Final = "untagged"
_MAX_CHUNK_CHARS: Final = 200  # leaves room for the index


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a record that hold the event's id and source, if the administrator has named any."""

    event_id: str | None = None
    source: str | None = None


class Conversion:
    """Converts one chunk to events, some at a time; together they take at most ``max_bytes``."""

    def __init__(self, chunk: Chunk, peer: str, fields: Fields, max_bytes: int) -> None:
        self.chunk = chunk
        self.events = Events()
        """The events made so far."""
        self._entries = iter(chunk.entries)
        self._max_bytes = max_bytes
        self._peer = peer
        self._fields = fields
        self._topic = topic_of(chunk.tag)
        self._more = {} if self._topic == chunk.tag else {"tag": values.escape(chunk.tag)}
        self._id = _id_of(chunk.name)

    def proceed(self, most: int, most_bytes: int) -> bool:
        """Make some more events; return whether the chunk is finished. Raises NotForward.

        It stops after ``most`` steps of decoding, or after the event with which the new events reach ``most_bytes``.
        """
        event_ids: list[str] = []
        json: list[bytes] = []
        size = steps = 0
        for entry in islice(self._entries, most):
            steps += 1
            if entry is not None:
                event_id, line = self._event(*entry, len(self.events) + len(json))
                event_ids.append(event_id)
                json.append(line)
                size += len(line)
                if size >= most_bytes:
                    steps = most
                    break
        topics = [self._topic] * len(json)
        self.events += Events(topics, event_ids, json, digests(topics, event_ids), size)
        if self.events.size_bytes > self._max_bytes:
            raise NotForward(f"its events take more than {self._max_bytes} bytes (--forward-chunk-bytes)")
        return steps < most

    def _event(self, time: Any, record: Any, index: int) -> tuple[str, bytes]:
        """The id of an event, and its JSON."""
        more = self._more
        if type(time) is list and time:
            more = more | ({"metadata": _json(time[1])} if len(time) > 1 and time[1] else {})
            time = time[0]
        timestamp = values.moment(time)
        if timestamp is None:
            timestamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            more = more | {"time": _json(time)}
        event_id, source = f"{self._id}.{index}", self._peer
        if type(record) is dict:
            event_id = _name_in(record, self._fields.event_id) or event_id
            source = _name_in(record, self._fields.source) or source
        else:
            record = record if isinstance(record, values.Pairs) else {"record": record}
        event = {
            "topic": self._topic, "event_id": event_id, "timestamp": timestamp, "source": source, "payload": record,
            **more,
        }  # fmt: skip
        json = values.encode(event)
        if json is None:
            event["payload"], escaped = _plain(record)
            json = orjson.dumps(event | {"escaped": True} if escaped else event)
        json = bytes(memoryview(json))  # a copy, because orjson's result keeps its buffer, of 4 KB at least
        if json_text.is_too_deep(json):
            raise NotForward(str(json_text.TooDeep()))
        return event_id, json


def topic_of(tag: str) -> str:
    """A valid topic for a tag: nearly always the tag itself."""
    return tag if rules.is_name(tag) else rules.FORBIDDEN.sub("_", tag)[: rules.MAX_NAME_CHARS] or _UNTAGGED


def _id_of(chunk: str | bytes | None) -> str:
    if chunk is None:
        return uuid.uuid4().hex
    if isinstance(chunk, str) and rules.is_name(chunk) and len(chunk) <= _MAX_CHUNK_CHARS:
        return chunk
    data = chunk if isinstance(chunk, bytes) else chunk.encode(errors="surrogateescape")
    return hashlib.sha256(data).hexdigest()


def _name_in(record: dict[str, Any], field: str | None) -> str | None:
    """The value of a field of the record, if it may be a name: a text or an integer."""
    value = record.get(field) if field else None
    if type(value) is int:
        return str(value)
    return value if rules.is_name(value) else None


def _json(value: Any) -> Any:
    plain, escaped = _plain(value)
    return {"escaped": plain} if escaped else plain


def _plain(value: Any) -> tuple[Any, bool]:
    try:
        return values.plain(value)
    except values.TooMuch as error:
        raise NotForward(str(error)) from None
