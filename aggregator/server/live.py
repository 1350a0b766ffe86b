"""The subscribers at the head, and the commits on their way to them.

Commits are written in rounds, some work in a turn of the loop, so that an ack never waits for a thousand writes. What
is committed during a round is the next round: a write costs the same whatever it holds, so where readers are many each
gets fewer writes with more in them. A subscriber is written to only if it stands where a commit of the round begins.
Whoever is too late, or stands elsewhere, falls behind: the store has it all, so nobody misses anything.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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

ROUND_BYTES: Final = 256 * 1024
"""A round takes no more commits when its events have so much: a subscriber's buffer is full then."""


@dataclass(frozen=True, slots=True)
class _Published:
    """A commit, where it begins, and its events as columns."""

    before: Position
    commit: Commit
    topics: Sequence[str]
    json: Sequence[bytes]


@dataclass(slots=True)
class _Round:
    """Commits that are written to the live ones together: to those with one interest after those with another."""

    commits: list[_Published]
    after: Position
    size_bytes: int
    groups: deque[tuple[Interest, deque[Subscription]]] | None = None
    """Those whose turn has not come, once it has begun."""
    pieces: list[list[Piece]] | None = None
    """Of each commit, for the first group. Only there, because each interest needs lines of its own."""
    whole: list[Piece] = field(default_factory=list)
    """The same, of all commits together."""

    @property
    def before(self) -> Position:
        """Where the first of them begins."""
        return self.commits[0].before

    def add(self, other: _Round) -> bool:
        """Take the commits that follow, if there is room for them; return whether there was."""
        if self.groups is not None or self.size_bytes + other.size_bytes > ROUND_BYTES:
            return False
        self.commits += other.commits
        self.after = other.after
        self.size_bytes += other.size_bytes
        return True

    def begins_at(self, position: Position) -> int | None:
        """The commit that follows this position."""
        return next((number for number, one in enumerate(self.commits) if one.before == position), None)


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

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def join(self, subscription: Subscription) -> None:
        """It stands at the head."""
        subscription.live = True
        self._groups.setdefault(subscription.interest, {})[subscription] = None

    def leave(self, subscription: Subscription) -> bool:
        """Write nothing more to it; return whether it was live."""
        if not subscription.live:
            return False
        subscription.live = False
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
        size_bytes = sum(part.size_bytes for part in parts)
        following = _Round([_Published(before, commit, topics, json)], after, size_bytes)
        if not (self._rounds and self._rounds[-1].add(following)):
            self._rounds.append(following)
        while len(self._rounds) > PENDING_ROUNDS:
            self._give_up(self._rounds.popleft())
        if not self._writing:
            self._write()

    def _give_up(self, late: _Round) -> None:
        for subscription in itertools.chain.from_iterable(group for _, group in late.groups or ()):
            if subscription.live and late.begins_at(subscription.position) is not None:
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
        if current.groups is None:
            current.groups = deque((interest, deque(group)) for interest, group in self._groups.items())
        if not current.groups:
            self._rounds.popleft()
            return 0
        interest, group = current.groups[0]
        if not group:
            current.groups.popleft()
            current.pieces = None
            return 0
        if current.pieces is None:
            current.pieces = [
                list(pieces.of_commit(interest, one.topics, one.json, one.commit)) for one in current.commits
            ]
            current.whole = _joined(current.pieces)
            return 1 + sum(len(one.topics) for one in current.commits) // EVENTS_PER_WRITE
        subscription = group.popleft()
        if not subscription.live or subscription.position == current.after:
            return 0
        first = 0 if subscription.position == current.before else current.begins_at(subscription.position)
        if first is None:
            self._fall_behind(subscription)
            return 0
        its_pieces = _joined(current.pieces[first:]) if first else current.whole
        for number, piece in enumerate(its_pieces, 1):
            self._deliver(subscription, piece)
            if not subscription.room:
                return number
        subscription.position = current.after
        return len(its_pieces)


def _joined(of_commits: Sequence[list[Piece]]) -> list[Piece]:
    return list(pieces.joined(itertools.chain.from_iterable(of_commits)))
