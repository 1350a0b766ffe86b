"""The subscribers at the head, and the commits on their way to them.

Each commit is a round. Rounds are carried out in order, some work in a turn of the loop, so that an ack never waits for
a thousand writes. A subscriber is written to only if the round begins where the subscriber stands. Whoever is late, or
stands elsewhere, falls behind: the store has it all, so nobody misses anything.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aggregator.event import Events
from aggregator.server import pieces
from aggregator.server.pieces import Piece
from aggregator.server.subscription import Subscription
from aggregator.storage.engine import Commit, Position
from aggregator.wire.interest import Interest

log = logging.getLogger("aggregator")

WRITES_PER_TURN: Final = 128
"""Writes of one turn of the loop: about 1 ms."""

EVENTS_PER_WRITE: Final = 16
"""Choosing and encoding so many events takes as long as a write."""

PENDING_ROUNDS: Final = 2
"""Rounds that may be unfinished. The subscribers whose turn has not come in an older one fall behind."""


@dataclass(slots=True)
class _Round:
    """A commit that is being written to the live ones: those with one interest after those with another."""

    before: Position
    after: Position
    commit: Commit
    topics: Sequence[str]
    json: Sequence[bytes]
    groups: deque[tuple[Interest, deque[Subscription]]]
    pieces: list[Piece] | None = None
    """For the first group. Only there, because each interest needs lines of its own."""


class Live:
    """Those at the head. ``deliver`` writes a piece to one; ``fall_behind`` takes one that has to leave."""

    def __init__(
        self, deliver: Callable[[Subscription, Piece], None], fall_behind: Callable[[Subscription], None]
    ) -> None:
        self._deliver = deliver
        self._fall_behind = fall_behind
        self._groups: dict[Interest, dict[Subscription, None]] = {}
        self._rounds: deque[_Round] = deque()
        self._writing = False  # whether another turn is scheduled

    def __contains__(self, subscription: Subscription) -> bool:
        return subscription in self._groups.get(subscription.interest, ())

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def join(self, subscription: Subscription) -> None:
        """It stands at the head."""
        self._groups.setdefault(subscription.interest, {})[subscription] = None

    def leave(self, subscription: Subscription) -> bool:
        """Write nothing more to it; return whether it was live."""
        if subscription not in self:
            return False
        group = self._groups[subscription.interest]
        del group[subscription]
        if not group:
            del self._groups[subscription.interest]
        return True

    def leave_all(self) -> None:
        """All fall behind."""
        self._rounds.clear()
        for group in list(self._groups.values()):
            for subscription in list(group):
                self._fall_behind(subscription)

    def publish(self, before: Position, after: Position, commit: Commit, parts: Sequence[Events]) -> None:
        """Write a commit to them."""
        if not self._groups:
            return
        topics = [topic for part in parts for topic in part.topics]
        json = [one for part in parts for one in part.json]
        groups = deque((interest, deque(group)) for interest, group in self._groups.items())
        self._rounds.append(_Round(before, after, commit, topics, json, groups))
        while len(self._rounds) > PENDING_ROUNDS:
            self._give_up(self._rounds.popleft())
        if not self._writing:
            self._write()

    def _give_up(self, late: _Round) -> None:
        for subscription in itertools.chain.from_iterable(group for _, group in late.groups):
            if subscription in self and subscription.position == late.before:
                self._fall_behind(subscription)

    def _write(self) -> None:
        budget = WRITES_PER_TURN
        try:
            while self._rounds and budget > 0:
                budget -= self._step(self._rounds[0])
        except Exception:  # a defect of ours
            log.exception("a commit could not be delivered as it was published")
            self.leave_all()
        self._writing = bool(self._rounds)
        if self._writing:
            asyncio.get_running_loop().call_soon(self._write)

    def _step(self, current: _Round) -> int:
        """Take one step of a round; return how many writes it was worth."""
        if not current.groups:
            self._rounds.popleft()
            return 0
        interest, group = current.groups[0]
        if not group:
            current.groups.popleft()
            current.pieces = None
            return 0
        if current.pieces is None:
            current.pieces = list(pieces.of_commit(interest, current.topics, current.json, current.commit))
            return 1 + len(current.topics) // EVENTS_PER_WRITE
        subscription = group.popleft()
        if subscription not in self:
            return 0
        if subscription.position != current.before:
            self._fall_behind(subscription)
            return 0
        for number, piece in enumerate(current.pieces, 1):
            self._deliver(subscription, piece)
            if not subscription.room:
                return number
        subscription.position = current.after
        return len(current.pieces)
