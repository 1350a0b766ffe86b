"""The bounded queue between the connections and the consumer: it counts events and bytes, and pushes back.

One item is a submission: all events of one connection that arrived together. Nothing is ever refused here, for what
was read must be answered; a connection that finds the intake full stops reading until it is told that there is room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aggregator.config import LOW_WATER_DIVISOR
from aggregator.event import Events


@dataclass(slots=True)
class Commit:
    """Events that are durable: event ``i`` of the submission has seq ``first_seq + i``, unless it is a duplicate.

    ``duplicates`` maps the position of a duplicate, counted from ``offset``, to the seq it was first stored under.
    """

    first_seq: int
    duplicates: dict[int, int]
    offset: int


@dataclass(slots=True)
class Failure:
    """Events of which it is unknown whether they are stored; ``code`` is one of the protocol's words."""

    code: str
    detail: str


Outcome = Commit | Failure


@dataclass(slots=True, eq=False)
class Submission:
    """Events that were read together and are committed together. ``settle`` is called once, after the commit."""

    events: Events
    settle: Callable[[Outcome], None]

    @property
    def size_bytes(self) -> int:
        return self.events.size_bytes


class Intake:
    """An asyncio.Queue of submissions that knows how many events and bytes wait in it."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.events = 0
        self.bytes = 0
        self._queue: asyncio.Queue[Submission | None] = asyncio.Queue()  # None: closed, nothing follows
        self._waiting: deque[Callable[[], None]] = deque()

    @property
    def full(self) -> bool:
        return self.events >= self.max_events or self.bytes >= self.max_bytes

    def put(self, submission: Submission) -> None:
        """Queue a submission. Never blocks: whoever finds the intake full afterwards has to stop reading."""
        self.events += len(submission.events)
        self.bytes += submission.size_bytes
        self._queue.put_nowait(submission)

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call back once, when there is room again, each waiting connection in its turn."""
        self._waiting.append(callback)

    def close(self) -> None:
        """Let the consumer end when it has taken all that is queued. Call it once."""
        self._queue.put_nowait(None)

    async def get(self) -> Submission | None:
        """The next submission, or None when the intake is closed and all was taken. It counts until ``took``."""
        while (submission := await self._queue.get()) is None:
            self._queue.put_nowait(None)  # the end mark moves behind whatever was put after it
            if self._queue.qsize() == 1:
                return None
        return submission

    def drain(self) -> list[Submission]:
        """All that is queued, taken at once."""
        drained = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        return [submission for submission in drained if submission is not None]

    def took(self, batch: Sequence[Submission]) -> None:
        """These submissions are on their way to the disk: there is room for others."""
        for submission in batch:
            self.events -= len(submission.events)
            self.bytes -= submission.size_bytes
        # Below the low water mark wake the waiting ones, but only as many as fill the queue again.
        if self.events <= self.max_events // LOW_WATER_DIVISOR and self.bytes <= self.max_bytes // LOW_WATER_DIVISOR:
            while self._waiting and not self.full:
                self._waiting.popleft()()
