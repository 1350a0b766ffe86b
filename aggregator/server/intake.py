"""The bounded queue between the connections and the consumer: it counts events and bytes, for backpressure.

One item is a submission: all events of one connection that arrived together. Nothing is ever refused here, because
what was read must be answered. A connection that finds the intake full stops reading until it is told that there is
room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from aggregator.event import Events
from aggregator.metric import Metric
from aggregator.storage.engine import Commit
from aggregator.wire import Failure

LOW_WATER_DIVISOR: Final = 2
"""Paused senders resume at this part of a limit. Half keeps the consumer busy while they wake up."""

Outcome = Commit | Failure
"""The outcome of events that were appended together: durable, or unknown."""


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
        self.waiting_events = 0
        self.waiting_bytes = 0
        self._queue: asyncio.Queue[Submission | None] = asyncio.Queue()  # None: closed, nothing follows
        self._callbacks: deque[Callable[[], None]] = deque()
        self._divert: Callable[[Submission], None] | None = None

    @property
    def full(self) -> bool:
        return self.waiting_events >= self.max_events or self.waiting_bytes >= self.max_bytes

    def put(self, submission: Submission) -> None:
        """Queue a submission. Never blocks: a connection that finds the intake full afterwards has to stop reading."""
        if self._divert:
            self._divert(submission)
            return
        self.waiting_events += len(submission.events)
        self.waiting_bytes += submission.size_bytes
        self._queue.put_nowait(submission)

    def when_room(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called once, when there is room again. Waiting connections are called in order."""
        self._callbacks.append(callback)

    def close(self) -> None:
        """Let the consumer end when it has taken all that is queued. Call it once."""
        self._queue.put_nowait(None)

    async def get(self) -> Submission | None:
        """The next submission, or None when the intake is closed and empty. A submission counts until ``took``."""
        while (submission := await self._queue.get()) is None:
            self._queue.put_nowait(None)  # the end mark moves behind whatever was put after it
            if self._queue.qsize() == 1:
                return None
        return submission

    def divert(self, to: Callable[[Submission], None]) -> list[Submission]:
        """Return all that is queued, and hand later submissions to ``to``: nothing will be stored any more."""
        self._divert = to
        drained = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        return [submission for submission in drained if submission is not None]

    def took(self, batch: Sequence[Submission]) -> None:
        """Stop counting these submissions, which are on their way to the disk. There is room for others now."""
        for submission in batch:
            self.waiting_events -= len(submission.events)
            self.waiting_bytes -= submission.size_bytes
        # Below the low water mark, wake waiting connections, but only as many as fill the queue again.
        if (
            self.waiting_events <= self.max_events // LOW_WATER_DIVISOR
            and self.waiting_bytes <= self.max_bytes // LOW_WATER_DIVISOR
        ):
            while self._callbacks and not self.full:
                self._callbacks.popleft()()

    def metrics(self) -> Iterator[Metric]:
        """The numbers of what waits in it."""
        yield Metric(
            "queue_events", self.waiting_events, "events that were read and wait for their commit", in_health=True
        )
        yield Metric("queue_limit", self.max_events, "queued events at which the server stops reading from clients")
        yield Metric("queue_bytes", self.waiting_bytes, "bytes of the queued events")
