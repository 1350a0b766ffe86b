"""Delivered events as they are shown: as JSON, as they were sent, as text for people, as columns.

The content of an event is shown digit for digit: it is cut out of the event's text, and never encoded again.
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from aggregator.client.delivered import DeliveredEvent
from aggregator.client.terminal import printable
from aggregator.json_text import members

Format = Callable[[Sequence[DeliveredEvent]], bytes]
"""From events to bytes, which end with a line feed."""

FORMATS: Final = ("json", "event", "text")
"""In this order: with seq and received_at; byte for byte as sent; for people."""

COLUMNS: Final = ("seq", "received_at", "timestamp", "topic", "source", "event_id", "payload")

_DIM, _PLAIN = "\033[2m", "\033[0m"
_COLOURS: Final = tuple(f"\033[{number}m" for number in (32, 33, 34, 35, 36))
"""The colours of topics. None is red, because red means that something is wrong."""

_LEVELS: Final = {"WARNING": "\033[33m", "WARN": "\033[33m", "ERROR": "\033[31m", "CRITICAL": "\033[31m"}
_INDENT: Final = "\n    "


def format_of(name: str, *, on_terminal: bool, coloured: bool) -> Format:
    """The format of this name."""
    if name == "text":
        return partial(_each, partial(_text, coloured=coloured))
    if on_terminal:
        return partial(_each, _json_on_terminal if name == "json" else _event_on_terminal)
    return _json if name == "json" else _event


def _json(events: Sequence[DeliveredEvent]) -> bytes:
    return b"".join([event.line + b"\n" for event in events])


def _event(events: Sequence[DeliveredEvent]) -> bytes:
    return b"".join([event.json + b"\n" for event in events])


def _each(show: Callable[[DeliveredEvent], str], events: Sequence[DeliveredEvent]) -> bytes:
    return "".join([f"{show(event)}\n" for event in events]).encode(errors="backslashreplace")


def _json_on_terminal(event: DeliveredEvent) -> str:
    return printable(event.line.decode())


def _event_on_terminal(event: DeliveredEvent) -> str:
    return printable(event.json.decode())


def _text(event: DeliveredEvent, coloured: bool) -> str:
    """Time, topic, source and message in one line. The lines of a longer message follow, indented."""
    fields = members(event.line.decode())
    time, topic, source = (printable(_unquoted(fields[name])) for name in ("timestamp", "topic", "source"))
    level, message = _message(fields.get("payload", "{}"))
    shown = _INDENT.join(map(printable, message.rstrip("\n").split("\n")))
    if not coloured:
        return f"{time} {topic} {source} {shown}"
    colour = _COLOURS[zlib.crc32(topic.encode(errors="replace")) % len(_COLOURS)]
    if (severity := _LEVELS.get(level)) is not None:
        shown = f"{severity}{shown}{_PLAIN}"
    return f"{_DIM}{time}{_PLAIN} {colour}{topic}{_PLAIN} {_DIM}{source}{_PLAIN} {shown}"


def _message(payload: str) -> tuple[str, str]:
    """The level and the message of a payload, with the text of an exception; all of a payload without a message."""
    fields = members(payload) if payload.startswith("{") else {}
    texts = [_unquoted(fields[name]) for name in ("message", "exception") if fields.get(name, "").startswith('"')]
    if not fields.get("message", "").startswith('"'):
        texts = [payload]
    return _unquoted(fields.get("level", "")).upper(), "\n".join(texts)


def _unquoted(value: str) -> str:
    """A string without its quotes and escapes; any other JSON as it is."""
    return str(json.loads(value)) if value.startswith('"') else value


class Csv:
    """Events as lines of comma-separated values (RFC 4180), with a line of names before the first.

    A column is a member of the event, or a path into one, its names joined by dots: ``payload.user.id``. A missing
    value, or null, is an empty field; objects and arrays are JSON.
    """

    def __init__(self, columns: Sequence[str] = COLUMNS) -> None:
        self._columns = columns
        self._begun = False

    def __call__(self, events: Sequence[DeliveredEvent]) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        if not self._begun:
            self._begun = True
            writer.writerow(self._columns)
        writer.writerows(map(self._row, events))
        return text.getvalue().encode(errors="backslashreplace")

    def _row(self, event: DeliveredEvent) -> list[str]:
        known: dict[str, dict[str, str]] = {}
        return [_cell(event.line.decode(), column, known) for column in self._columns]


def _cell(text: str, path: str, known: dict[str, dict[str, str]]) -> str:
    """The value at the end of a path. ``known`` has the members of objects that were parsed before."""
    while True:
        if text not in known:
            known[text] = members(text) if text.startswith("{") else {}
        fields = known[text]
        if path in fields:  # the whole rest of the path comes first, because a name may contain dots
            value = _unquoted(fields[path])
            return "" if value == "null" and fields[path] == "null" else value
        name, _, path = path.partition(".")
        if not path or name not in fields:
            return ""
        text = fields[name]
