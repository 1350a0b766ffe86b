"""The arguments of SUBSCRIBE and EVENTS: patterns, then options as pairs of a name and a value.

The line is read from its end, so a topic may be called AFTER. What is left at the front are the patterns, at least one.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from aggregator.access.identity import Identity
from aggregator.server.state import State
from aggregator.storage.engine import Position
from aggregator.wire import Rejection, moment, replies
from aggregator.wire.interest import MAX_PATTERNS, Interest, interest_in
from aggregator.wire.pattern import BadPattern

MAX_NUMBER: Final = (1 << 63) - 1

MAX_LISTED: Final = 1000
"""The most entries of one answer; the rest is on further pages."""

ANSWER_S: Final = 0.25
"""How long the server works on an answer before it cuts the answer short: enough for a thousand blocks, mostly."""


class BadCommand(Exception):
    """A command that has bad arguments, or comes at a bad moment."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


def number(name: str, text: str, lowest: int, highest: int) -> int:
    """A number among arguments. Raises BadCommand."""
    # isdecimal() keeps out signs, blanks and underscores. The limit of length keeps out numbers that take int() long.
    if text.isdecimal() and len(text) <= 19 and lowest <= int(text) <= highest:
        return int(text)
    raise BadCommand(replies.bad_number(name, text, lowest, highest))


def bad_position(name: str, text: str, state: State) -> BadCommand:
    """The error for a text that is not a position."""
    head = state.feed.head
    if isinstance(head, int):
        return BadCommand(replies.bad_number(name, text, 0, MAX_NUMBER))
    return BadCommand(replies.not_a_position(name, text, head))


@dataclass(slots=True)
class Query:
    """Patterns and options, as they were typed."""

    patterns: list[str]
    options: dict[str, str] = field(default_factory=dict)
    usage: str = ""

    def interest(self, reader: Identity) -> Interest:
        """What is asked for, as far as ``reader`` may read it. Raises BadCommand."""
        if len(self.patterns) > MAX_PATTERNS:
            raise BadCommand(replies.bad_option(f"at most {MAX_PATTERNS} patterns", self.usage))
        shard = self.options.get("SHARD")
        try:
            return interest_in(
                tuple(self.patterns),
                self.options.get("SOURCE"),
                self.options.get("CONTAINS"),
                None if shard is None else _shard(shard),
                None if reader.read.every else reader.read.globs,
            )
        except BadPattern as error:
            raise BadCommand(replies.bad_option(str(error), self.usage)) from None

    def position(self, name: str, state: State) -> Position | None:
        """The position that an option gives; None if the option is not there. Raises BadCommand."""
        if (text := self.options.get(name)) is None:
            return None
        position = state.engine.parse_position(text)
        if position is None:
            raise bad_position(name.lower(), text, state)
        if state.engine.distance(state.feed.head, position):
            raise BadCommand(replies.past_the_newest(name.lower(), position, state.feed.head))
        return position

    def before(self, state: State) -> Position | None:
        """The position that BEFORE gives; None if the option is not there. A seq means just before its event.

        Raises BadCommand.
        """
        position = self.position("BEFORE", state)
        if position is None or not self.options["BEFORE"].isdecimal():
            return position
        return state.engine.retreat(position, [int(self.options["BEFORE"])])

    async def moment(self, name: str, state: State) -> Position | None:
        """The position before the point in time that an option gives; None if the option is not there.

        Raises BadCommand, StorageUnreadable.
        """
        if (text := self.options.get(name)) is None:
            return None
        now = time.time_ns() // 1_000_000
        found = moment.read(text, now)
        if found is None:
            raise BadCommand(replies.not_a_moment(name.lower(), text))
        if found == now:
            return state.feed.head
        sought = await state.engine.seek(found)
        # Events that are committed and not published yet are still to be delivered.
        position = state.engine.earlier(state.feed.head, sought)
        if position == state.feed.head and found > now:  # past all that is stored, even if the clock was set back
            raise BadCommand(replies.not_now(f"{name.lower()}: {text[:40]} is in the future"))
        return position

    def seconds(self, name: str, default: int, highest: int) -> int:
        """An option that is a number of seconds. Raises BadCommand."""
        text = self.options.get(name)
        return default if text is None else number(name.lower(), text, 0, highest)


def parse(arguments: Sequence[str], known: Collection[str], usage: str, exclusive: Collection[str] = ()) -> Query:
    """Split arguments. ``known`` are the names of options; of those in ``exclusive`` at most one may be there.

    Raises BadCommand.
    """
    rest = list(arguments)
    options: dict[str, str] = {}
    while len(rest) >= 3 and rest[-2].upper() in known:
        value, name = rest.pop(), rest.pop().upper()
        if name in options:
            raise BadCommand(replies.bad_option(f"{name} is given twice", usage))
        options[name] = value
    if not rest:
        raise BadCommand(replies.missing_argument("a topic or pattern is missing", usage))
    if len(both := [name for name in exclusive if name in options]) > 1:
        raise BadCommand(replies.bad_option(f"{both[0]} and {both[1]} exclude each other", usage))
    return Query(rest, options, usage)


def _shard(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    if first.isdecimal() and second.isdecimal() and len(text) <= 11 and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise BadCommand(replies.not_now(f"shard: expected I/N with I from 1 to N, got {text[:40]!r}"))
