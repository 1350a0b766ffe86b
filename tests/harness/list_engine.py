"""An engine for tests of the feed: a list of events, and reads that end when the test lets them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from aggregator.event import Event, Events
from aggregator.storage.engine import Commit, Position, Slice, StorageUnreadable, Stretch, Wanted


@dataclass
class ListEngine:
    """Commits are appended to a list. A read waits in ``reads`` until the test answers it."""

    commits: list[tuple[Commit, list[Event]]] = field(default_factory=list)
    reads: list[asyncio.Future[None]] = field(default_factory=list)
    next_seq: int = 1
    slice_events: int = 5
    oldest: int = 1
    """Older events are no longer there."""
    unreadable: bool = False
    shared: bool = False
    """Whether the engine is shared: then the feed follows it, and looks for news when ``told`` is set."""
    told: asyncio.Event = field(default_factory=asyncio.Event)

    async def look(self) -> None:
        """The head is always known."""

    async def news(self) -> None:
        await self.told.wait()
        self.told.clear()

    @property
    def head(self) -> Position:
        return self.next_seq - 1

    def append(self, events: Sequence[Event], duplicates: dict[int, int]) -> tuple[Sequence[Events], Commit]:
        """Store events; return what the feed is told about them."""
        seqs = range(self.next_seq, self.next_seq + len(events))
        self.next_seq = seqs.stop
        commit = Commit(seqs, duplicates, received_at=len(self.commits))
        self.commits.append((commit, list(events)))
        middle = len(events) // 2
        return [Events.of(events[:middle]), Events.of(events[middle:])], commit

    def stored(self) -> list[tuple[int, Event, int]]:
        """Seq, event and time of each stored event."""
        return [
            (seq, event, commit.received_at)
            for commit, events in self.commits
            for position, (seq, event) in enumerate(zip(commit.seqs, events, strict=True))
            if position not in commit.duplicates
        ]

    def parse_position(self, text: str) -> Position | None:
        return int(text)

    def advance(self, position: Position, seqs: Sequence[int]) -> Position:
        return seqs[-1] if seqs else position

    def retreat(self, position: Position, seqs: Sequence[int]) -> Position:
        return max(0, seqs[-1] - 1) if seqs else position

    def distance(self, earlier: Position, later: Position) -> int:
        return max(0, int(later) - int(earlier))

    def earlier(self, one: Position, other: Position) -> Position:
        return min(int(one), int(other))

    def later(self, one: Position, other: Position) -> Position:
        return max(int(one), int(other))

    async def read(
        self, wanted: Wanted, after: Position, until: Position, background: bool = False, slices: int = 1
    ) -> Slice:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reads.append(answer)
        await answer
        if self.unreadable:
            raise StorageUnreadable("cannot read: it is a test")
        gap = None
        if self.oldest > int(after) + 1:
            after = gap = min(self.oldest - 1, int(until))
        found = [one for one in self.stored() if int(after) < one[0] <= int(until)]
        position = until if len(found) <= self.slice_events else found[self.slice_events - 1][0]
        stretches = [
            Stretch([seq], [event.json], received_at, [event.topic])
            for seq, event, received_at in found[: self.slice_events]
            if wanted.wants_topic(event.topic)
        ]
        return Slice(stretches, position, gap)

    def answer(self) -> bool:
        """Let the oldest read end; return whether a read was waiting."""
        while self.reads:
            answer = self.reads.pop(0)
            if not answer.done():
                answer.set_result(None)
                return True
        return False
