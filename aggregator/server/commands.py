"""The commands: name, usage, help, and the function that answers each.

Commands use counters and index look-ups only, never ``COUNT(*)``, so they answer within milliseconds whatever the size
and load of the store. An answer is a dict; the connection puts ``"status":"ok"`` before it. The connection also
carries out QUIT.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from importlib.metadata import version
from typing import Final

from aggregator import __version__
from aggregator.access.identity import Identity, Permission
from aggregator.metric import Metric
from aggregator.server import pages, queries, subscribe
from aggregator.server.asker import Answer, Asker
from aggregator.server.queries import MAX_LISTED, MAX_NUMBER, BadCommand, number
from aggregator.server.state import State
from aggregator.server.topic_search import Found
from aggregator.storage.engine import StorageError
from aggregator.wire import Word, replies

_VERSIONS: Final = {
    "aggregator": __version__,
    "python": platform.python_version(),
    **{name: version(name) for name in ("uvloop", "orjson", "aiosqlite")},
}


class Requirement(Enum):
    """The permission that a client needs to use a command."""

    NOTHING = auto()
    READ = auto()
    """To read some topic. Topics that the client may not read do not exist for it."""
    MONITOR = auto()
    ADMIN = auto()

    def is_met_by(self, identity: Identity) -> bool:
        """Whether this identity may use a command with this requirement."""
        if self is Requirement.READ:
            return bool(identity.read)
        return self is Requirement.NOTHING or identity.has(
            Permission.MONITOR if self is Requirement.MONITOR else Permission.ADMIN
        )


@dataclass(frozen=True, slots=True)
class _Command:
    """A command: its name, how it is typed, what HELP says of it, the function that answers it, its requirement."""

    word: Word
    usage: str
    help: str
    function: Callable[[list[str], State, Asker], Awaitable[Answer]]
    needs: Requirement = Requirement.NOTHING


async def answer(word: Word, arguments: list[str], state: State, asker: Asker) -> Answer:
    """Carry out a command. Raises BadCommand, Refused, StorageError."""
    command = COMMANDS[word]
    if not command.needs.is_met_by(asker.identity):
        raise BadCommand(replies.may_not_use(asker.identity.name, word))
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
    yield from state.admission.metrics()
    yield from state.feed.metrics()
    yield Metric("cursors", len(state.cursors), "names under which the store keeps readers' positions")
    yield from state.engine.gauges()


async def _stats(arguments: list[str], state: State, asker: Asker) -> Answer:
    with contextlib.suppress(StorageError):  # then the numbers are those of the last count
        await state.engine.count()
    numbers = {metric.name: metric.value for metric in metrics(state)}
    return {**numbers, "versions": {**_VERSIONS, state.engine.name: state.engine.version}}


async def _health(arguments: list[str], state: State, asker: Asker) -> Answer:
    health, checks = state.health.verdict(state.engine.troubles())
    numbers = {metric.name: metric.value for metric in metrics(state) if metric.in_health}
    return {"health": health, "checks": {**checks, **numbers, f"{state.engine.name}_version": state.engine.version}}


async def _topics(arguments: list[str], state: State, asker: Asker) -> Answer:
    rest, after = _take_after(arguments)
    limit = number("limit", rest.pop(0), 1, MAX_LISTED) if rest else MAX_LISTED
    _nothing_left(rest, Word.TOPICS)
    await state.engine.count()
    may_read = asker.identity.read
    if may_read.every:
        topics = await state.engine.topics(limit, after or "")
        found = Found(topics, state.engine.topics_total, truncated=False)
    else:
        found = await state.topic_searches.find(state.engine, may_read, limit, after or "", queries.ANSWER_S)
    return {
        **({} if found.total is None else {"total": found.total}),
        "topics": [{"topic": topic.name, "stored": topic.stored, "last_seq": topic.last_seq} for topic in found.topics],
        **({"truncated": True} if found.truncated else {}),
    }


async def _whoami(arguments: list[str], state: State, asker: Asker) -> Answer:
    return {**asker.caller.who, "peer": asker.peer, "tls": asker.caller.credentials.tls}


async def _clients(arguments: list[str], state: State, asker: Asker) -> Answer:
    rest, after = _take_after(arguments)
    past = number("after", after, 0, MAX_NUMBER) if after is not None else 0
    limit = number("limit", rest.pop(0), 1, MAX_LISTED) if rest else MAX_LISTED
    _nothing_left(rest, Word.CLIENTS)
    now = time.monotonic()
    listed = [slot for slot in state.admission if slot.number > past][:limit]
    return {
        "total": len(state.admission),
        "clients": [
            {"id": slot.number, **slot.holder.about(), "connected_s": round(now - slot.since, 1)} for slot in listed
        ],
    }


async def _kill(arguments: list[str], state: State, asker: Asker) -> Answer:
    if not arguments:
        raise BadCommand(replies.missing_argument("an id is missing", COMMANDS[Word.KILL].usage))
    wanted = number("id", arguments[0], 1, MAX_NUMBER)
    found = next((slot for slot in state.admission if slot.number == wanted), None)
    if found:  # in the loop's next turn: a client that kills its own connection gets the answer first
        asyncio.get_running_loop().call_soon(found.holder.disconnect, replies.killed())
    return {"id": wanted, "killed": found is not None}


async def _auth(arguments: list[str], state: State, asker: Asker) -> Answer:
    raise BadCommand(replies.late_auth())


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
        _Command(Word.AUTH, "AUTH <token>", "authenticate; first line only", _auth),
        _Command(Word.WHOAMI, "WHOAMI", "who you are, and how the server knows", _whoami),
        _Command(Word.STATS, "STATS", "counters since the start, sizes, versions", _stats, Requirement.MONITOR),
        _Command(Word.HEALTH, "HEALTH", "healthy, degraded or failed, and why", _health, Requirement.MONITOR),
        _Command(
            Word.TOPICS, "TOPICS [limit] [AFTER topic]", "topics by name, with their counts", _topics, Requirement.READ
        ),
        _Command(
            Word.EVENTS,
            pages.EVENTS_USAGE,
            "the newest events; with AFTER or SINCE the oldest from there on",
            pages.events,
            Requirement.READ,
        ),
        _Command(Word.EVENT, pages.EVENT_USAGE, "one event by its key", pages.event, Requirement.READ),
        _Command(
            Word.SUBSCRIBE,
            subscribe.SUBSCRIBE_USAGE,
            "events as they are committed; with AFTER or SINCE all from there on",
            subscribe.subscribe,
            Requirement.READ,
        ),
        _Command(Word.UNSUBSCRIBE, "UNSUBSCRIBE", "end the subscription", subscribe.unsubscribe, Requirement.READ),
        _Command(
            Word.ACK, subscribe.ACK_USAGE, "mark all events up to that seq as handled", subscribe.ack, Requirement.READ
        ),
        _Command(
            Word.SUBSCRIBERS,
            "SUBSCRIBERS [limit]",
            "who is subscribed, and how far behind",
            subscribe.subscribers,
            Requirement.READ,
        ),
        _Command(
            Word.CURSORS,
            subscribe.CURSORS_USAGE,
            "names, and how far their readers have got",
            subscribe.cursors,
            Requirement.READ,
        ),
        _Command(Word.FORGET, subscribe.FORGET_USAGE, "remove a name", subscribe.forget, Requirement.READ),
        _Command(Word.CLIENTS, "CLIENTS [limit] [AFTER id]", "who is connected", _clients, Requirement.MONITOR),
        _Command(Word.KILL, "KILL <id>", "end that client's connection", _kill, Requirement.ADMIN),
        _Command(Word.QUIT, "QUIT", "answer what came before, say bye and close", _ping),
    )
}
