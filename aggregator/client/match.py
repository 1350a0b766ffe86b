"""Whether a reply answers a line: order alone is not enough, because something on the way may put a line before ours.

A proxy that prepends a PROXY header makes a server answer one line more than was sent. Every reply is then one line
early, and would ack an event that may not be stored.
"""

from __future__ import annotations

from typing import Any, Final

from aggregator import json_text
from aggregator.json_text import NotJson, TooDeep
from aggregator.wire import Code, Status

_TOPIC: Final = b',"topic":'
_EVENT_ID: Final = b',"event_id":'
_NOT_FOR_EVENTS: Final = (Code.BAD_LINE, Code.BAD_COMMAND)
"""Codes that never answer a line that begins like an event."""


def acks(reply: bytes, line: bytes) -> bool:
    """Whether a ``stored`` or ``duplicate`` reply has the topic and the event_id of the line."""
    start = reply.find(_TOPIC) + 1
    names = reply[start:-1]
    # Most lines begin with these two members, spelt as the server spells them: no need to decode anything.
    if _EVENT_ID in names and line.startswith(names, 1) and line[1 + len(names) : 2 + len(names)] in (b",", b"}"):
        return True
    fields, event = _decoded(reply), _decoded(line)
    return type(fields) is dict and type(event) is dict and _same_names(fields, event)


def answers(fields: dict[str, Any], line: bytes, number: int) -> bool:
    """Whether any other reply may answer this line, which is the ``number``-th on its connection."""
    status = fields["status"]
    if status == Status.REJECTED and (_is_not_for_events(fields) or fields.get("line", number) != number):
        return False
    value = _decoded(line)
    if status != Status.BATCH:
        return type(value) is not dict or _may_be_names(fields, value)
    members = _members(value)
    if members is None:
        return False
    return all(map(_may_be_names, fields.get("results", ()), members))


def _is_not_for_events(fields: dict[str, Any]) -> bool:
    code = fields.get("code")
    return code in _NOT_FOR_EVENTS or (code == Code.NOT_ALLOWED and "topic" not in fields)  # it answers a command


def _same_names(fields: dict[str, Any], event: dict[str, Any]) -> bool:
    return all(fields.get(name) == event.get(name) for name in ("topic", "event_id"))


def _may_be_names(fields: dict[str, Any], event: Any) -> bool:
    """As ``_same_names``, but the reply may lack names that the server could not read."""
    names = [name for name in ("topic", "event_id") if name in fields]
    return not names or (type(event) is dict and all(fields[name] == event.get(name) for name in names))


def _members(batch: Any) -> list[Any] | None:
    if type(batch) is dict and "topic" not in batch:
        batch = batch.get("events")
    return batch if type(batch) is list else None


def _decoded(text: bytes) -> Any:
    try:
        return json_text.decode(text)
    except (NotJson, TooDeep):
        return None
