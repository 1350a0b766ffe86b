"""The commands: name, usage, help, and a function from what it may see to its answer.

Commands read counters and index look-ups only, never ``COUNT(*)``: they answer within milliseconds whatever the size
and load of the store. An answer is a dict; the connection puts ``"status":"ok"`` before it and carries out QUIT.
"""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any, Final

import orjson

from aggregator import __version__
from aggregator.metric import Metric
from aggregator.server.state import State
from aggregator.storage.engine import StoredEvent
from aggregator.wire import Rejection, Word, replies

EVENTS_DEFAULT: Final = 10
EVENTS_MAX: Final = 1000
"""Events in one answer to EVENTS, and topics in one answer to TOPICS; the rest is a page further."""

MAX_SEQ: Final = (1 << 63) - 1

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_VERSIONS: Final = {
    "aggregator": __version__,
    "python": platform.python_version(),
    **{name: version(name) for name in ("uvloop", "orjson", "aiosqlite")},
}


class BadCommand(Exception):
    """A command that is unknown or has bad arguments."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Command:
    """A command's name, how it is typed, what HELP says of it, and the function that answers it."""

    word: Word
    usage: str
    help: str
    function: Callable[[list[str], State], Awaitable[Answer]]


async def answer(word: Word, arguments: list[str], state: State) -> Answer:
    """Carry out a command. Raises BadCommand; StorageUnreadable when the store cannot be read."""
    command = COMMANDS[word]
    if len(arguments) > len(command.usage.split()) - 1:
        raise BadCommand(replies.too_many_arguments(command.usage))
    return await command.function(arguments, state)


async def _ping(arguments: list[str], state: State) -> Answer:
    return {"pong": True}


async def _help(arguments: list[str], state: State) -> Answer:
    return {"commands": {command.usage: command.help for command in COMMANDS.values()}}


def metrics(state: State) -> Iterator[Metric]:
    """Every number that the server shows."""
    yield from state.stats.metrics()
    yield from state.intake.metrics()
    yield Metric("connections_limit", state.config.max_connections, "connections that may be open")
    yield from state.engine.gauges()


async def _stats(arguments: list[str], state: State) -> Answer:
    numbers = {metric.name: metric.value for metric in metrics(state)}
    return {**numbers, "versions": {**_VERSIONS, state.engine.name: state.engine.version}}


async def _health(arguments: list[str], state: State) -> Answer:
    health, checks = state.health.verdict(state.engine.troubles())
    numbers = {metric.name: metric.value for metric in metrics(state) if metric.in_health}
    return {"health": health, "checks": {**checks, **numbers, f"{state.engine.name}_version": state.engine.version}}


async def _topics(arguments: list[str], state: State) -> Answer:
    rest, after = _take_after(arguments)
    limit = _number("limit", rest.pop(0), 1, EVENTS_MAX) if rest else EVENTS_MAX
    _nothing_left(rest, Word.TOPICS)
    topics = await state.engine.topics(limit, after or "")
    return {
        "total": state.engine.topics_total,
        "topics": [{"topic": topic.name, "stored": topic.stored, "last_seq": topic.last_seq} for topic in topics],
    }


async def _events(arguments: list[str], state: State) -> Answer:
    if not arguments:
        raise BadCommand(replies.missing_argument("a topic is missing", COMMANDS[Word.EVENTS].usage))
    topic, *options = arguments  # whatever it is called
    rest, after = _take_after(options)
    limit = _number("limit", rest.pop(0), 1, EVENTS_MAX) if rest else EVENTS_DEFAULT
    _nothing_left(rest, Word.EVENTS)
    seq = None if after is None else _number("seq", after, 0, MAX_SEQ)
    events, cut = await state.engine.events(topic, limit, seq, state.config.reply_buffer_bytes)
    listed: Answer = {"topic": topic, "events": [_as_sent(event) for event in events]}
    return {**listed, "truncated": True} if cut else listed


async def _event(arguments: list[str], state: State) -> Answer:
    if len(arguments) != 2:
        raise BadCommand(replies.missing_argument("a topic and an event_id are needed", COMMANDS[Word.EVENT].usage))
    event = await state.engine.event(*arguments)
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
    raise BadCommand(replies.bad_number(name, text, lowest, highest))


def _nothing_left(rest: list[str], word: Word) -> None:
    if rest:
        raise BadCommand(replies.unexpected_argument(rest[0], COMMANDS[word].usage))


def _as_sent(event: StoredEvent) -> orjson.Fragment:
    """The event byte for byte, and two more fields at the end, because parsers keep the last of two equal names."""
    received_at = (_EPOCH + timedelta(milliseconds=event.received_at)).isoformat(timespec="milliseconds")
    ours = b',"seq":%d,"received_at":"%sZ"}' % (event.seq, received_at[:-6].encode())
    return orjson.Fragment(event.json.rstrip()[:-1] + ours)


COMMANDS: Final = {
    command.word: command
    for command in (
        _Command(Word.PING, "PING", "answer at once", _ping),
        _Command(Word.HELP, "HELP", "this list", _help),
        _Command(Word.STATS, "STATS", "counters since the start, sizes, versions", _stats),
        _Command(Word.HEALTH, "HEALTH", "healthy, degraded or failed, and why", _health),
        _Command(Word.TOPICS, "TOPICS [limit] [AFTER topic]", "topics by name, with their counts", _topics),
        _Command(
            Word.EVENTS,
            "EVENTS <topic> [limit] [AFTER seq]",
            "the newest events; AFTER: the oldest past that seq",
            _events,
        ),
        _Command(Word.EVENT, "EVENT <topic> <event_id>", "one event by its key", _event),
        _Command(Word.QUIT, "QUIT", "answer what came before, say bye and close", _ping),
    )
}
