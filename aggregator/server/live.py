"""The live subscriptions, and the commits on their way to them.

Commits are written in rounds. A turn of the event loop does a limited part of a round, so an ack never waits for a
thousand writes. Commits that happen during a round form the next round. A write costs the same whatever it holds, so
many subscriptions get fewer writes with more in each. A round is written to a subscription only if the subscription's
position is where one of the round's commits begins. A subscription that is too late, or has another position, falls
behind. It misses nothing, because the store has all events.
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
"""Writes in one turn of the event loop: about 1 ms."""

EVENTS_PER_WRITE: Final = 16
"""Choosing and encoding this many events takes as long as one write."""

PENDING_ROUNDS: Final = 2
"""How many rounds may be unfinished. Subscriptions that an older round has not reached yet fall behind."""

ROUND_BYTES: Final = 256 * 1024
"""A round takes no further commit that would bring its events past this size, which fills a subscription's buffer."""


@dataclass(frozen=True, slots=True)
class _Published:
    """A commit, the position where it begins, and its events as columns."""

    before: Position
    commit: Commit
    topics: Sequence[str]
    json: Sequence[bytes]


@dataclass(slots=True)
class _Round:
    """Commits that are written together to the live subscriptions, interest by interest."""

    commits: list[_Published]
    after: Position
    size_bytes: int
    groups: deque[tuple[Interest, deque[Subscription]]] | None = None
    """By interest, the subscriptions that it has not reached yet; None until the round has begun."""
    pieces: list[list[Piece]] | None = None
    """The pieces of each commit, for the first group only, because each interest needs lines of its own."""
    whole: list[Piece] = field(default_factory=list)
    """The pieces of all commits together, for the same group."""

    @property
    def before(self) -> Position:
        """The position where the first commit begins."""
        return self.commits[0].before

    def add(self, other: _Round) -> bool:
        """Take the commits of the next round, if this round has not begun and has room; return whether it did."""
        if self.groups is not None or self.size_bytes + other.size_bytes > ROUND_BYTES:
            return False
        self.commits += other.commits
        self.after = other.after
        self.size_bytes += other.size_bytes
        return True

    def begins_at(self, position: Position) -> int | None:
        """The index of the commit that begins at this position, if there is one."""
        return next((number for number, one in enumerate(self.commits) if one.before == position), None)


class Live:
    """The live subscriptions. ``deliver`` writes a piece to one; ``fall_behind`` takes one that has to leave."""

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
        """Add a subscription whose position is the head."""
        subscription.live = True
        self._groups.setdefault(subscription.interest, {})[subscription] = None

    def leave(self, subscription: Subscription) -> bool:
        """Remove a subscription; return whether it was live."""
        if not subscription.live:
            return False
        subscription.live = False
        group = self._groups[subscription.interest]
        del group[subscription]
        if not group:
            del self._groups[subscription.interest]
        return True

    def leave_all(self) -> None:
        """Make all subscriptions fall behind."""
        self._rounds.clear()
        for group in list(self._groups.values()):
            for subscription in list(group):
                self._fall_behind(subscription)

    def publish(self, before: Position, after: Position, commit: Commit, parts: Sequence[Events]) -> None:
        """Write a commit to the subscriptions, as part of a round."""
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
            log.exception("a commit could not be delivered live")
            self.leave_all()
        self._writing = bool(self._rounds)
        if self._writing:
            asyncio.get_running_loop().call_soon(self._write)

    def _step(self, current: _Round) -> int:
        """Do one step of a round; return its cost, counted in writes."""
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
