"""The admin commands: each a function from what it may see to its answer.

They read counters and index look-ups only, never ``COUNT(*)``: they answer within milliseconds whatever the table's
size and load. An answer is a dict; the connection puts ``"status":"ok"`` before it. QUIT is the connection's own.
"""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any, Final

import orjson

from aggregator import __version__
from aggregator.config import EVENTS_DEFAULT, EVENTS_MAX, Config
from aggregator.intake import Intake
from aggregator.stats import Stats
from aggregator.store import Store, StoredEvent

SLOW_COMMIT_S: Final = 5.0
"""A commit that takes longer makes HEALTH degraded: the worst batch measured took a tenth of a second."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_VERSIONS: Final = {
    "aggregator": __version__,
    "python": platform.python_version(),
    **{name: version(name) for name in ("uvloop", "orjson", "aiosqlite")},
}


class BadCommand(Exception):
    """A command that is unknown or has bad arguments; the text is the reply's ``detail``."""


@dataclass(frozen=True, slots=True)
class View:
    """What a command may see."""

    config: Config
    stats: Stats
    intake: Intake
    store: Store


Answer = dict[str, Any]


async def answer(word: str, arguments: list[str], view: View) -> Answer:
    """Carry out a command. Raises BadCommand; StorageFailed and its kin when the database cannot be read."""
    command = COMMANDS.get(word)
    if command is None:
        raise BadCommand(f"unknown command {word[:40]}; HELP lists them")
    function, usage, _ = command
    if len(arguments) > len(usage.split()) - 1:
        raise BadCommand(f"too many arguments; usage: {usage}")
    return await function(arguments, view)


async def _ping(arguments: list[str], view: View) -> Answer:
    return {"pong": True}


async def _help(arguments: list[str], view: View) -> Answer:
    return {"commands": {usage: text for _, usage, text in COMMANDS.values()}}


async def _stats(arguments: list[str], view: View) -> Answer:
    stats, intake, store = view.stats, view.intake, view.store
    return {
        "received": stats.received,
        "unique_processed": stats.stored,
        "duplicate_dropped": stats.duplicate,
        "rejected": stats.rejected,
        "errors": stats.errors,
        "topics": store.topics_total,
        "uptime_s": round(stats.uptime_s, 3),
        "events_per_s": stats.events_per_s(),
        "queue_events": intake.events,
        "queue_limit": intake.max_events,
        "queue_bytes": intake.bytes,
        "connections": stats.connections,
        "connections_limit": view.config.max_connections,
        "connections_total": stats.connections_total,
        "connections_refused": stats.connections_refused,
        "muted": stats.muted,
        "batches": stats.batches,
        "commit_ms": stats.commit_ms(),
        "stored_total": store.stored_total,
        "db_bytes": store.db_bytes,
        "wal_bytes": store.wal_bytes,
        "ledger": {"runs": store.ledger.run_count, "filter": round(store.ledger.filter.filled, 3)},
        "versions": {**_VERSIONS, "sqlite": store.sqlite_version},
    }


async def _health(arguments: list[str], view: View) -> Answer:
    stats, store = view.stats, view.store
    commit_age_s = stats.commit_age_s
    storage = stats.failure or stats.trouble
    slow = f"a commit has been running for {commit_age_s:.1f} s" if commit_age_s > SLOW_COMMIT_S else None
    checkpoint = store.last_checkpoint.error
    health = "failed" if stats.failure else "degraded" if storage or slow or checkpoint else "healthy"
    return {
        "health": health,
        "checks": {
            "storage": storage or "ok",
            "commit": slow or "ok",
            "checkpoint": checkpoint or "ok",
            "checkpoint_age_s": round(store.checkpoint_age_s, 3),
            "wal_bytes": store.wal_bytes,
            "queue_events": view.intake.events,
            "sqlite_version": store.sqlite_version,
        },
    }


async def _topics(arguments: list[str], view: View) -> Answer:
    rest, after = _take_after(arguments)
    limit = _number("limit", rest.pop(0), 1, EVENTS_MAX) if rest else EVENTS_MAX
    _nothing_left(rest, "TOPICS")
    topics = await view.store.topics(limit, after or "")
    return {
        "total": view.store.topics_total,
        "topics": [{"topic": topic.name, "stored": topic.stored, "last_seq": topic.last_seq} for topic in topics],
    }


async def _events(arguments: list[str], view: View) -> Answer:
    rest, after = _take_after(arguments)
    if not rest:
        raise BadCommand("a topic is missing; usage: " + COMMANDS["EVENTS"][1])
    topic = rest.pop(0)
    limit = _number("limit", rest.pop(0), 1, EVENTS_MAX) if rest else EVENTS_DEFAULT
    _nothing_left(rest, "EVENTS")
    seq = None if after is None else _number("seq", after, 0, (1 << 63) - 1)
    events, cut = await view.store.events(topic, limit, seq, view.config.reply_buffer_bytes)
    listed: Answer = {"topic": topic, "events": [_as_sent(event) for event in events]}
    return {**listed, "truncated": True} if cut else listed


async def _event(arguments: list[str], view: View) -> Answer:
    if len(arguments) != 2:
        raise BadCommand("a topic and an event_id are needed; usage: " + COMMANDS["EVENT"][1])
    event = await view.store.event(*arguments)
    return {"event": _as_sent(event) if event else None}


def _take_after(arguments: list[str]) -> tuple[list[str], str | None]:
    """Split off a trailing ``AFTER value``."""
    if len(arguments) >= 2 and arguments[-2].upper() == "AFTER":
        return arguments[:-2], arguments[-1]
    return list(arguments), None


def _number(name: str, text: str, lowest: int, highest: int) -> int:
    # isdecimal() keeps out signs, blanks and underscores, the length a number that int() would take long for.
    if text.isdecimal() and len(text) <= 19 and lowest <= int(text) <= highest:
        return int(text)
    raise BadCommand(f"{name}: expected a number from {lowest} to {highest}, got {text[:40]!r}")


def _nothing_left(rest: list[str], word: str) -> None:
    if rest:
        raise BadCommand(f"unexpected {rest[0][:40]!r}; usage: {COMMANDS[word][1]}")


def _as_sent(event: StoredEvent) -> orjson.Fragment:
    """The event byte for byte, and two fields more; last, for of a name that is there twice parsers keep the last."""
    received_at = (_EPOCH + timedelta(milliseconds=event.received_at)).isoformat(timespec="milliseconds")
    ours = b',"seq":%d,"received_at":"%sZ"}' % (event.seq, received_at[:-6].encode())
    return orjson.Fragment(event.json.rstrip()[:-1] + ours)


COMMANDS: Final[dict[str, tuple[Callable[[list[str], View], Awaitable[Answer]], str, str]]] = {
    "PING": (_ping, "PING", "answer at once"),
    "HELP": (_help, "HELP", "this list"),
    "STATS": (_stats, "STATS", "counters since the start, sizes, versions"),
    "HEALTH": (_health, "HEALTH", "healthy, degraded or failed, and why"),
    "TOPICS": (_topics, "TOPICS [limit] [AFTER topic]", "topics by name, with their counts"),
    "EVENTS": (_events, "EVENTS <topic> [limit] [AFTER seq]", "the newest events; AFTER: the oldest past that seq"),
    "EVENT": (_event, "EVENT <topic> <event_id>", "one event by its key"),
    "QUIT": (_ping, "QUIT", "answer what came before, say bye and close"),
}
