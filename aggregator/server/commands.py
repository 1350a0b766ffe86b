"""The commands: name, usage, help, and a function from what it may see to its answer.

Commands read counters and index look-ups only, never ``COUNT(*)``: they answer within milliseconds whatever the size
and load of the store. An answer is a dict; the connection puts ``"status":"ok"`` before it and carries out QUIT.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from aggregator import __version__
from aggregator.metric import Metric
from aggregator.server import reading
from aggregator.server.queries import BadCommand, number
from aggregator.server.reading import Answer, Asker
from aggregator.server.state import State
from aggregator.storage.engine import StorageError
from aggregator.wire import Word, replies

TOPICS_MAX: Final = 1000
"""Topics in one answer; the rest is a page further."""

_VERSIONS: Final = {
    "aggregator": __version__,
    "python": platform.python_version(),
    **{name: version(name) for name in ("uvloop", "orjson", "aiosqlite")},
}


@dataclass(frozen=True, slots=True)
class _Command:
    """A command's name, how it is typed, what HELP says of it, and the function that answers it."""

    word: Word
    usage: str
    help: str
    function: Callable[[list[str], State, Asker], Awaitable[Answer]]


async def answer(word: Word, arguments: list[str], state: State, asker: Asker) -> Answer:
    """Carry out a command. Raises BadCommand, Refused, StorageError."""
    command = COMMANDS[word]
    if "…" not in command.usage and len(arguments) > len(command.usage.split()) - 1:
        raise BadCommand(replies.too_many_arguments(command.usage))
    return await command.function(arguments, state, asker)


async def _ping(arguments: list[str], state: State, asker: Asker) -> Answer:
    return {"pong": True}


async def _help(arguments: list[str], state: State, asker: Asker) -> Answer:
    return {"commands": {command.usage: command.help for command in COMMANDS.values()}}


def metrics(state: State) -> Iterator[Metric]:
    """Every number that the server shows."""
    yield from state.stats.metrics()
    yield from state.intake.metrics()
    yield Metric("connections_limit", state.config.max_connections, "connections that may be open")
    yield from state.feed.metrics()
    yield Metric("cursors", len(state.cursors), "names that readers have left their positions under")
    yield from state.engine.gauges()


async def _stats(arguments: list[str], state: State, asker: Asker) -> Answer:
    with contextlib.suppress(StorageError):  # then they are of the last time
        await state.engine.count()
    numbers = {metric.name: metric.value for metric in metrics(state)}
    return {**numbers, "versions": {**_VERSIONS, state.engine.name: state.engine.version}}


async def _health(arguments: list[str], state: State, asker: Asker) -> Answer:
    health, checks = state.health.verdict(state.engine.troubles())
    numbers = {metric.name: metric.value for metric in metrics(state) if metric.in_health}
    return {"health": health, "checks": {**checks, **numbers, f"{state.engine.name}_version": state.engine.version}}


async def _topics(arguments: list[str], state: State, asker: Asker) -> Answer:
    rest, after = _take_after(arguments)
    limit = number("limit", rest.pop(0), 1, TOPICS_MAX) if rest else TOPICS_MAX
    _nothing_left(rest, Word.TOPICS)
    await state.engine.count()
    topics = await state.engine.topics(limit, after or "")
    return {
        "total": state.engine.topics_total,
        "topics": [{"topic": topic.name, "stored": topic.stored, "last_seq": topic.last_seq} for topic in topics],
    }


def _take_after(arguments: list[str]) -> tuple[list[str], str | None]:
    """Split off a trailing ``AFTER value``."""
    if len(arguments) >= 2 and arguments[-2].upper() == "AFTER":
        return arguments[:-2], arguments[-1]
    return list(arguments), None


def _nothing_left(rest: list[str], word: Word) -> None:
    if rest:
        raise BadCommand(replies.unexpected_argument(rest[0], COMMANDS[word].usage))


COMMANDS: Final = {
    command.word: command
    for command in (
        _Command(Word.PING, "PING", "answer at once", _ping),
        _Command(Word.HELP, "HELP", "this list", _help),
        _Command(Word.STATS, "STATS", "counters since the start, sizes, versions", _stats),
        _Command(Word.HEALTH, "HEALTH", "healthy, degraded or failed, and why", _health),
        _Command(Word.TOPICS, "TOPICS [limit] [AFTER topic]", "topics by name, with their counts", _topics),
        _Command(
            Word.EVENTS, reading.EVENTS_USAGE, "the newest events; AFTER, SINCE: the oldest from there", reading.events
        ),
        _Command(Word.EVENT, reading.EVENT_USAGE, "one event by its key", reading.event),
        _Command(
            Word.SUBSCRIBE, reading.SUBSCRIBE_USAGE, "events as they are committed, or from there on", reading.subscribe
        ),
        _Command(Word.UNSUBSCRIBE, "UNSUBSCRIBE", "no more events", reading.unsubscribe),
        _Command(Word.ACK, reading.ACK_USAGE, "all events up to that seq are handled", reading.ack),
        _Command(Word.SUBSCRIBERS, "SUBSCRIBERS [limit]", "who reads, and how far behind", reading.subscribers),
        _Command(Word.CURSORS, reading.CURSORS_USAGE, "names, and how far their readers have come", reading.cursors),
        _Command(Word.FORGET, reading.FORGET_USAGE, "remove a name", reading.forget),
        _Command(Word.QUIT, "QUIT", "answer what came before, say bye and close", _ping),
    )
}
