"""From a record of Python's logging to an event."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from aggregator.client.encode import event_line

_OF_LOGGING: Final = frozenset([*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"])
"""The attributes of every record; any other attribute was given as ``extra``."""

_formatter: Final = logging.Formatter()


def event_of(record: logging.LogRecord, topic: str, source: str) -> bytes:
    """The event's line. Its payload has ``level``, ``logger``, ``message``, ``exception``, and the fields of ``extra``.

    Fields of ``extra`` that have no form in JSON are left out.
    """
    payload: dict[str, Any] = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
    text = record.exc_text or (_formatter.formatException(record.exc_info) if record.exc_info else "")
    if text := "\n".join(filter(None, [text, record.stack_info])):
        payload["exception"] = text
    extra = {name: value for name, value in vars(record).items() if name not in _OF_LOGGING and name not in payload}
    try:
        return _line(record, topic, source, {**payload, **extra})
    except TypeError:  # rare: text that is not Unicode, or a value that has no form in JSON
        readable = {name: value.encode(errors="backslashreplace").decode() for name, value in payload.items()}
        return _line(record, topic, source, {**readable, **_that_are_json(extra)})


def _line(record: logging.LogRecord, topic: str, source: str, payload: dict[str, Any]) -> bytes:
    timestamp = datetime.fromtimestamp(record.created, UTC)
    return event_line({"topic": topic, "timestamp": timestamp, "source": source, "payload": payload})


def _that_are_json(fields: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in fields.items():
        try:
            orjson.dumps({name: value})
        except TypeError:
            continue
        found[name] = value
    return found
