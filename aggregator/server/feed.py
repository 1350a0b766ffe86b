"""Deliveries: each subscription gets the stored events in order, then each new commit, without a gap or a repeat.

The store is the only buffer. A subscription whose position is the feed's head is *live*: each commit is written to it
as it is published. All other subscriptions are *behind* and read from the store, one slice each in turn. A subscription
whose client does not read stops being live, keeps its position, and reads from the store once there is room again.

The hand-over rule: the head moves in the step that publishes a commit, which comes after the commit itself. A read
never goes past the head that it saw when it began. When a read has brought a subscription to the head, the subscription
becomes live in that same step, without an await. A commit is written only to subscriptions whose position is where the
commit begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from aggregator.event import Events
from aggregator.metric import Kind, Metric
from aggregator.server import pieces
from aggregator.server.intake import Intake
from aggregator.server.live import Live
from aggregator.server.pieces import Piece
from aggregator.server.subscription import Subscription
from aggregator.storage.engine import AnyEngine, Commit, Position, StorageUnreadable
from aggregator.wire import Failure, replies
from aggregator.wire.interest import Interest

log = logging.getLogger("aggregator")

BUSY_S: Final = 0.1
"""For this long after a commit, senders count as being at work, and catching up is paced."""

MAX_SLICES: Final = 8
"""The most slices that are read at once, for a subscription that takes all of them: 2 MiB. The way to the engine and
back takes longer than the reading, above all when the event loop is busy. A slow subscription gets one slice, because
the rest would be dropped and read again."""

PACE: Final = 16
"""While senders are at work, catching up pauses for this many times as long as it has spent making and writing lines:
the senders' latency counts more."""

PAUSE_S: Final = 0.001
"""The shortest pause: uvloop's timers are no finer. Shorter pauses are added up until they are this long."""

QUEUE_EVENTS: Final = 256
"""While more events than this wait in the intake, catching up pauses only after each slice, and only for as long as the
slice took. Latency is then that of a batch anyway, and a reader must gain on the load."""

TICK_S: Final = 1.0
"""How often the feed checks which heartbeats are due."""

RATE_WINDOW_S: Final = 10.0
"""Deliveries per second are averaged over this time."""


class Feed:
    """All subscriptions of one server."""

    def __init__(self, engine: AnyEngine, intake: Intake) -> None:
        self._engine = engine
        self._intake = intake
        self.head: Position = engine.head
        self.stopped = False
        self._all: dict[Subscription, None] = {}
        self._live = Live(self._deliver, self._fall_behind)
        self._behind: deque[Subscription] = deque()
        self._parked: dict[Subscription, None] = {}  # nothing to read for them until the head moves
        self._something_behind = asyncio.Event()
        self._waiting: dict[asyncio.Event, Interest] = {}
        self._published_at = 0.0
        self._worked_s = 0.0  # spent making and writing lines since the last pause
        self._fell_behind = 0
        self._delivered_before = 0  # by subscriptions that are over
        self._rate: deque[tuple[float, int]] = deque(maxlen=int(RATE_WINDOW_S / TICK_S) + 1)
        self._tasks: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        """How many subscriptions are not over."""
        return len(self._all)

    def start(self) -> None:
        """Start delivering. Call it once, in the event loop."""
        self._tasks = [asyncio.create_task(self._catch_up()), asyncio.create_task(self._tick())]

    def stop(self, failure: Failure) -> None:
        """End every subscription, and accept no new ones; ``failure`` says why."""
        self.stopped = True
        for subscription in list(self._all):
            self.fail(subscription, failure)
        self._wake_all()
        for task in self._tasks:
            task.cancel()

    # --- subscriptions

    def admit(self, subscription: Subscription) -> None:
        """Count the subscription from now on."""
        self._all[subscription] = None

    def begin(self, subscription: Subscription) -> None:
        """Start delivering from its position: the reply to its command has been written."""
        subscription.begun = True
        subscription.quiet_since = time.monotonic()
        if not subscription.over:
            self._put_behind(subscription)
        elif subscription.last_line is not None:
            self._say_last(subscription, subscription.last_line)

    def end(self, subscription: Subscription, last_line: bytes | None = None) -> None:
        """End the subscription. Nothing is delivered after ``last_line``."""
        if subscription.over:
            return
        subscription.over = True
        self._all.pop(subscription, None)
        self._parked.pop(subscription, None)
        self._live.leave(subscription)
        self._delivered_before += subscription.delivered
        if not subscription.begun:
            subscription.last_line = last_line
        elif last_line is not None:
            self._say_last(subscription, last_line)

    def fail(self, subscription: Subscription, failure: Failure) -> None:
        """End the subscription with an error line."""
        self.end(subscription, replies.subscription_over(failure, subscription.position))

    def pause(self, subscription: Subscription) -> None:
        """Stop delivering for now: the receiver has no room."""
        subscription.room = False
        subscription.stalled_since = subscription.stalled_since or time.monotonic()
        if self._live.leave(subscription):
            self._fell_behind += 1

    def resume(self, subscription: Subscription) -> None:
        """Deliver again: the receiver has room."""
        if not subscription.room:
            subscription.room = True
            subscription.stalled_since = None
            if subscription.begun and not subscription.over:
                self._put_behind(subscription)

    @property
    def subscriptions(self) -> Sequence[Subscription]:
        """The subscriptions that are not over, oldest first."""
        return list(self._all)

    def state(self, subscription: Subscription) -> str:
        """``live``, ``catching_up`` or ``stalled``."""
        if not subscription.room:
            return "stalled"
        return "live" if subscription.live else "catching_up"

    def _put_behind(self, subscription: Subscription) -> None:
        if not subscription.queued:
            subscription.queued = True
            self._behind.append(subscription)
        self._something_behind.set()

    def _fall_behind(self, subscription: Subscription) -> None:
        if self._live.leave(subscription):
            self._fell_behind += 1
        self._put_behind(subscription)

    def _say(self, subscription: Subscription, line: bytes) -> None:
        subscription.sent = subscription.position
        self._push(subscription, line)

    def _push(self, subscription: Subscription, data: bytes) -> None:
        subscription.quiet_since = time.monotonic()
        if not subscription.receiver.push(data):
            self.pause(subscription)

    def _say_last(self, subscription: Subscription, line: bytes) -> None:
        subscription.sent = subscription.position
        subscription.receiver.push(line)
        subscription.receiver.subscription_over()

    def _deliver(self, subscription: Subscription, piece: Piece) -> None:
        knows_all = subscription.sent == subscription.position
        subscription.position = self._engine.advance(subscription.position, piece.seqs)
        # The reader does not know how far events that did not match have moved its position in other lanes.
        subscription.sent = subscription.position if knows_all else self._engine.advance(subscription.sent, piece.seqs)
        subscription.delivered += len(piece.seqs)
        self._push(subscription, piece.data)

    # --- live

    @property
    def needs_events(self) -> bool:
        """Whether a live subscription, or a caller of ``wait``, needs the events of the next commit."""
        return bool(len(self._live) or self._waiting)

    def publish(self, parts: Sequence[Events], commit: Commit, after: Position) -> None:
        """Deliver a commit. ``parts`` holds its events, divided as they came. The head moves to ``after``."""
        before, self.head = self.head, after
        self._published_at = time.monotonic()
        if not self._all and not self._waiting:
            return
        for subscription in self._parked:
            self._put_behind(subscription)
        self._parked.clear()
        try:
            self._wake(parts)
            self._live.publish(before, after, commit, parts)
        except Exception:  # a defect of ours
            log.exception("a commit could not be published")
            self._live.leave_all()

    def all_fall_behind(self) -> None:
        """Make all live subscriptions read from the store, because the next commits cannot be published."""
        self._live.leave_all()
        self._wake_all()

    # --- behind

    async def _catch_up(self) -> None:
        while True:
            while not self._behind:
                self._something_behind.clear()
                await self._something_behind.wait()
            subscription = self._behind.popleft()
            subscription.queued = False
            try:
                await self._read_for(subscription)
            except StorageUnreadable as error:
                self.fail(subscription, replies.cannot_read(str(error)))
            except Exception as error:  # a defect of ours ends this subscription, and no other
                log.exception("%s: a delivery failed", subscription.receiver.peer)
                self.fail(subscription, replies.cannot_read(f"a defect: {type(error).__name__}"))
            await self._rest()

    async def _read_for(self, subscription: Subscription) -> None:
        """Read the next slices for a subscription, and deliver them."""
        if subscription.over or not subscription.room:
            return
        until = self.head if subscription.until is None else subscription.until
        start = subscription.position
        slices, subscription.slices = subscription.slices, 1
        try:
            found = await self._engine.read(
                subscription.interest, subscription.position, until, background=True, slices=slices
            )
        except StorageUnreadable:
            if slices == 1:
                raise
            self._put_behind(subscription)  # read again in single slices, which reach the events before the damage
            return
        if subscription.over or not subscription.room:
            return
        if found.gap is not None:
            line = replies.gap(subscription.position, found.gap)
            subscription.position = found.gap
            self._say(subscription, line)
        started_s = time.thread_time()
        for piece in pieces.of_slice(subscription.interest, found.stretches, subscription.left):
            if subscription.over or not subscription.room:
                return
            self._deliver(subscription, piece)
            if subscription.left is not None:
                subscription.left -= len(piece.seqs)
            self._worked_s += time.thread_time() - started_s
            if self._intake.waiting_events <= QUEUE_EVENTS:
                await self._rest()
            started_s = time.thread_time()
        if subscription.over:
            return
        if subscription.left == 0:
            self.end(subscription, replies.end(subscription.position))
        elif subscription.room:
            subscription.slices = min(2 * slices, MAX_SLICES)
            subscription.position = found.position
            self._look_at_end(subscription, start, until)

    async def _rest(self) -> None:
        """Pause, if senders are at work and enough has been done since the last pause."""
        if time.monotonic() - self._published_at >= BUSY_S:
            self._worked_s = 0.0
            return
        pause_s = self._worked_s * (1 if self._intake.waiting_events > QUEUE_EVENTS else PACE)
        if pause_s >= PAUSE_S:
            self._worked_s = 0.0
            await asyncio.sleep(pause_s)

    def _look_at_end(self, subscription: Subscription, start: Position, until: Position) -> None:
        """Decide, without an await, whether the subscription ends, becomes live, waits, or reads on."""
        if subscription.position not in (start, until):
            self._put_behind(subscription)
        elif subscription.until is not None:
            self.end(subscription, replies.end(subscription.position))
        elif until != self.head:  # the head moved during the read
            self._put_behind(subscription)
        elif subscription.position != until:  # it is ahead of the head in some lane: another server has seen more
            self._parked[subscription] = None
        else:
            if not subscription.caught_up:
                subscription.caught_up = True
                self._say(subscription, replies.caught_up(subscription.position))
            if subscription.bounded:
                self._parked[subscription] = None
            elif subscription.room and not subscription.queued:  # if it is queued, its next read decides
                self._live.join(subscription)

    # --- waiting for the next commit

    async def wait(self, interest: Interest, timeout_s: float) -> None:
        """Return when something wanted may have been published, after ``timeout_s``, or when the feed stops."""
        woken = asyncio.Event()
        self._waiting[woken] = interest
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await woken.wait()
        finally:
            del self._waiting[woken]

    def _wake(self, parts: Sequence[Events]) -> None:
        if self._waiting:
            topics = {topic for part in parts for topic in part.topics}
            for woken, interest in self._waiting.items():
                if any(map(interest.wants_topic, topics)):
                    woken.set()

    def _wake_all(self) -> None:
        for woken in self._waiting:
            woken.set()

    # --- heartbeats and numbers

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self._rate.append((now, self._delivered))
            for one in list(self._all):
                if one.begun and one.room and one.beat_s and now - one.quiet_since >= one.beat_s:
                    self._say(one, replies.heartbeat(one.position))

    @property
    def _delivered(self) -> int:
        return self._delivered_before + sum(subscription.delivered for subscription in self._all)

    def metrics(self) -> Iterator[Metric]:
        """The numbers of all subscriptions."""
        rate = 0.0
        if len(self._rate) > 1:
            (first_at, first), (last_at, last) = self._rate[0], self._rate[-1]
            rate = round((last - first) / (last_at - first_at), 1)
        yield Metric("subscribers", len(self._all), "clients that have subscribed")
        yield Metric("catching_up", len(self._all) - len(self._live), "subscribers that read from the store")
        yield Metric("delivered", self._delivered, "events delivered to subscribers", Kind.COUNTER)
        yield Metric("deliveries_per_s", rate, f"events delivered a second, over the last {RATE_WINDOW_S:g} s")
        yield Metric(
            "fell_behind", self._fell_behind, "how often a live subscriber fell back to the store", Kind.COUNTER
        )
