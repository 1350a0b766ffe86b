"""Finding a moment: how long ``SUBSCRIBE … SINCE`` takes to answer, for moments all over the history."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from bench.peers.wire import Connection
from bench.percentiles import percentiles
from bench.subscribe.ours import Ours

MOMENTS: Final = 50


def measured(ours: Ours) -> dict[str, Any]:
    """Ask for each moment once, and check that the first event is no older."""
    connection = Connection(ours.port)
    oldest, _ = _one_event(connection, b"EVENTS * 1 AFTER 0\n")
    newest, stored = _one_event(connection, b"EVENTS * 1\n")
    span = newest - oldest
    took_s, exact = [], True
    for number in range(MOMENTS):
        moment = oldest + span * (number * 7 % MOMENTS) / MOMENTS
        shown = moment.isoformat(timespec="milliseconds")
        started = time.perf_counter()
        connection.socket.sendall(f"SUBSCRIBE * SINCE {shown} LIMIT 1\n".encode())
        reply = connection.line()
        took_s.append(time.perf_counter() - started)
        if b'"subscribed"' not in reply:
            raise RuntimeError(reply.decode())
        event = orjson.loads(connection.line())["event"]
        exact = exact and datetime.fromisoformat(event["received_at"]) >= datetime.fromisoformat(shown)
        connection.line()  # the end
    connection.close()
    return {"stored": stored, "moments": MOMENTS, **percentiles(took_s, (50, 100)), "exact": exact}


def _one_event(connection: Connection, request: bytes) -> tuple[datetime, int]:
    """When the event was received, and the seq that was looked up to: the head, if newest first."""
    connection.socket.sendall(request)
    reply = orjson.loads(connection.line())
    return datetime.fromisoformat(reply["events"][0]["received_at"]).astimezone(UTC), int(reply["seq"])
