"""What readers cost in memory: readers that wait for events, and readers that do not read what is sent to them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Final

import orjson

from aggregator.client import ask
from bench.process import Server
from bench.subscribe.ours import OPTIONS, Ours
from bench.subscribe.reader import Plan, Readers

SETTLE_S: Final = 60.0
POLL_S: Final = 0.2
STEADY: Final = 5
"""How many looks at the memory in a row must be equal."""
ASK_S: Final = 10.0


def measured(store: Path, empty: Path, readers: int) -> dict[str, Any]:
    """Waiting readers use a server with an empty store, where nothing else happens; stalled readers need events."""
    idle = Plan(0, readers, Ours.greeting, Ours.ready, Ours.mark)
    stalled = Plan(0, readers, b"SUBSCRIBE * AFTER 0\n", b'"subscribed"', Ours.mark, stalled=True)
    return {"readers": readers, "idle": _growth(empty, idle, "live"), "stalled": _growth(store, stalled, "stalled")}


def _growth(folder: Path, plan: Plan, state: str) -> dict[str, Any]:
    with Server(folder, *OPTIONS) as server:
        server.wait_until_filled()
        before = _steady(server)
        own = Plan(server.port, plan.readers, plan.greeting, plan.ready, plan.mark, stalled=plan.stalled)
        with Readers(own) as readers:
            settled = _settle(server, plan.readers, state)
            after = server.rss_bytes
            readers.stop()
    return {
        "mb": round((after - before) / 1e6, 1),
        "server_rss_mb": round(after / 1e6, 1),
        "kb_per_reader": round((after - before) / 1e3 / plan.readers, 1),
        f"all_{state}": settled,
    }


def _steady(server: Server) -> int:
    """The server's memory, once it stays the same."""
    deadline = time.monotonic() + SETTLE_S
    seen = [server.rss_bytes]
    while time.monotonic() < deadline and (len(seen) < STEADY or len(set(seen[-STEADY:])) > 1):
        time.sleep(POLL_S)
        seen.append(server.rss_bytes)
    return seen[-1]


def _settle(server: Server, readers: int, state: str) -> bool:
    """Wait until no reader is catching up and the server's memory is steady; return whether all have this state."""
    deadline = time.monotonic() + SETTLE_S
    states: list[str] = ["catching_up"]
    while time.monotonic() < deadline and "catching_up" in states:
        time.sleep(POLL_S)
        reply = orjson.loads(asyncio.run(ask("127.0.0.1", server.port, "SUBSCRIBERS", ASK_S)))
        states = [one["state"] for one in reply["subscribers"]]
    _steady(server)
    return states == [state] * readers
