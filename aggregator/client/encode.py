"""From a program's mapping to an event's line: JSON, with the fields that every event must have."""

from __future__ import annotations

import functools
import socket
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson


def event_line(event: Mapping[str, Any]) -> bytes:
    """An event as one line of JSON, without its LF.

    Missing fields are filled in: ``timestamp`` with the current time, ``event_id`` with a random id, ``source`` with
    this host's name. The caller provides topic and payload. If a later run of the program may send an event again, the
    caller must provide its event_id too, because only the same id makes it the same event.

    Raises TypeError for a value that has no form in JSON. Dates of ``datetime`` are encoded in the form of RFC 3339.
    """
    filled = {
        "topic": None,  # keeps the first place: acks are compared with lines faster if the names come first
        "event_id": event["event_id"] if "event_id" in event else uuid.uuid4().hex,
        "timestamp": event["timestamp"] if "timestamp" in event else datetime.now(UTC),
        "source": event["source"] if "source" in event else host_name(),
        **event,
    }
    if "topic" not in event:
        del filled["topic"]  # the server rejects it, in its own words
    return orjson.dumps(filled, option=orjson.OPT_UTC_Z)


@functools.cache
def host_name() -> str:
    """This host's name, the default ``source``."""
    return socket.gethostname()
