"""From what a program has to an event's line: JSON, with what every event must have."""

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

    What is missing is filled in: ``timestamp`` with now, ``event_id`` with a random one, ``source`` with this host's
    name. A topic and a payload are the caller's. An event that may be sent again by a later run of the program needs an
    event_id of its own, because only the same id makes it the same event.

    Raises TypeError for what is no JSON. Dates of ``datetime`` are encoded as RFC 3339 has them.
    """
    filled = {
        "topic": None,  # its place: names come first, where acks are compared with lines
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
    """This host's name, as ``source`` has it."""
    return socket.gethostname()
