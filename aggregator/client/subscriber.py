"""Stored events as an asynchronous iterator, across reconnects and restarts of the server.

Rules that hold here:

- The position moves when the next event is asked for, not when one arrives: a reader that goes on from the position
  gets again what the loop body has not finished.
- The events that have arrived and wait are bounded. At the bound the socket is not read, and the server keeps the rest
  in its store.
- After an outage, reading goes on after the last event that has arrived. A reader with a name goes on after its last
  ack instead, so the events that have arrived since are dropped, and come again.
- A position belongs to one store. The server is asked for the store's name before anything is done in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final

from aggregator.client.acks import Acks
from aggregator.client.connect import Server, SocketAddress
from aggregator.client.delivered import DeliveredEvent, follow
from aggregator.client.inbox import Aside, Inbox
from aggregator.client.outage import Outage
from aggregator.client.query import Position, Request
from aggregator.client.reply import reason
from aggregator.client.subscription import AnotherStore, Gap, Subscription
from aggregator.wire import Status
from aggregator.wire.delivery import EVENT_START

log = logging.getLogger("aggregator.client.subscriber")

BEAT_S: Final = 15
"""The server says something at least this often."""

SILENT_BEATS: Final = 3
"""After this many beats without a line the connection is given up: one beat may be late, two may be bad luck."""

REPLY_TIMEOUT_S: Final = 30.0
"""The same limit until the server has answered the subscription, which the silent port never does."""

TICK_S: Final = 1.0
"""How often a reader with a name acks what is done, or sooner if that is much. Silence is noticed with this delay."""

LAST_ACK_S: Final = 5.0
"""How long the end waits for the answer to the last ack."""


class Subscriber:
    """Reads events of the topics that match ``patterns``, oldest first.

    Without ``after`` (a position) and ``since`` (a time, as in ``SUBSCRIBE``) it begins with the events that are
    committed from now on: once ``async with`` has begun its block, no event is missed. It ends at ``until`` or after
    ``limit`` events; without either it never ends. With a ``name`` the server keeps the position: call ``done``.

    ``store`` says which store ``after`` belongs to. If ``on_gap`` and ``on_another_store`` are given, they are called
    instead of raising the error, and another store is then read from its beginning. ``on_trouble`` gets one line of
    text at the start of every outage. Without ``give_up_after_s`` the subscriber tries for ever. ``host``, ``ssl`` and
    ``token`` are as in ``Sender``.

    Entering and iterating raise Gap, AnotherStore, TakenOver, Refused, GaveUp and NotOurProtocol.
    """

    def __init__(
        self,
        host: str,
        port: int,
        patterns: str | Sequence[str] = "*",
        *,
        ssl: ssl.SSLContext | None = None,
        token: str | None = None,
        after: Position | None = None,
        since: str | None = None,
        until: str | None = None,
        limit: int | None = None,
        source: str | None = None,
        contains: str | None = None,
        shard: str | None = None,
        name: str | None = None,
        store: str | None = None,
        beat_s: int = BEAT_S,
        on_gap: Callable[[Gap], object] | None = None,
        on_another_store: Callable[[AnotherStore], object] | None = None,
        on_caught_up: Callable[[], object] | None = None,
        on_trouble: Callable[[str], object] = log.warning,
        give_up_after_s: float | None = None,
    ) -> None:
        self.store = store
        """The name of the store that is read."""
        self.head: Position | None = None
        """The newest position when reading began."""
        self._server = Server(host, port, ssl, token)
        options = {"SOURCE": source, "CONTAINS": contains, "SHARD": shard, "BEAT": beat_s, "AS": name}
        each = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        self._request = Request(each, options, since, until, limit)
        self._beat_s, self._limit, self._name = beat_s, limit, name
        self._on_gap, self._on_another_store, self._on_caught_up = on_gap, on_another_store, on_caught_up
        self._on_trouble = on_trouble
        self._outage = Outage(self._server.shown, on_trouble, give_up_after_s)

        # What has arrived: up to which position, how many events, and those that wait for the loop body.
        self._arrived = after
        self._arrived_events = 0
        self._inbox = Inbox()
        self._paused = False
        self._something = asyncio.Event()
        self._ended = False
        self._failure: Exception | None = None

        # What was handed out: the loop body has finished ``_handled``, and is at work on ``_given``.
        self._handled: DeliveredEvent | Position | None = after
        self._given: DeliveredEvent | Position | None = after
        self._batch: Iterator[DeliveredEvent] = iter(())

        self._acks = Acks()
        self._subscription: Subscription | None = None
        self._disappointing: SocketAddress | None = None
        self._began_at: float | None = None
        self._began = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        if after is not None and since is not None:
            raise ValueError("after and since exclude each other")
        self._request.line(after)  # raises ValueError here too, where the caller sees it

    @property
    def position(self) -> Position | None:
        """All events up to here are finished: a number or a text, for ``after``. None before reading has begun."""
        return self._handled.position if isinstance(self._handled, DeliveredEvent) else self._handled

    def done(self, event: DeliveredEvent) -> None:
        """With a name: record that this event and all before it are handled, so that they do not come again."""
        if self._name is not None:
            self._acks.done(event)
            if self._acks.due:
                self._ack()

    async def __aenter__(self) -> Subscriber:
        self._task = asyncio.create_task(self._keep_subscribed())
        try:
            await self._began.wait()
            if self._failure:
                raise self._failure
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ack what is done, and disconnect."""
        try:
            await self._finish_acks()
        finally:
            if self._task:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
                await asyncio.sleep(0)  # lets the transport close its socket

    # --- events out

    def __aiter__(self) -> Subscriber:
        return self

    async def __anext__(self) -> DeliveredEvent:
        self._handled = self._given
        while (event := next(self._batch, None)) is None:
            events = await self._next_events()
            if events is None:
                raise StopAsyncIteration
            self._batch = iter(events)
        self._given = event
        return event

    async def batches(self) -> AsyncIterator[list[DeliveredEvent]]:
        """The same events, as many at a time as have arrived together. The position moves one batch at a time."""
        while (batch := await self._next_events()) is not None:
            yield batch
            self._handled = self._given = batch[-1]

    async def _next_events(self) -> list[DeliveredEvent] | None:
        """Events that have arrived together; None at the end."""
        while True:
            if self._inbox:
                item = self._inbox.take()
                self._read_on()
                if isinstance(item, list):
                    return item
                self._hear(item)
            elif self._failure:
                raise self._failure
            elif self._ended:
                return None
            else:
                self._something.clear()
                await self._something.wait()

    def _hear(self, item: Aside | AnotherStore) -> None:
        """Handle what comes between events, when the events before it are finished."""
        if isinstance(item, AnotherStore):
            assert self._on_another_store
            self._handled = self._given = 0
            self._on_another_store(item)
            return
        status, seq, fields = item
        self._handled = self._given = seq
        if status is Status.CAUGHT_UP and self._on_caught_up:
            self._on_caught_up()
        elif status is Status.GAP:
            gap = Gap(fields["after"], seq)
            if not self._on_gap:
                raise gap
            self._on_gap(gap)

    def _read_on(self) -> None:
        if self._paused and not self._inbox.is_full:
            self._paused = False
            connection = self._subscription and self._subscription.connection
            if connection and not connection.over.done():
                connection.heard_at = asyncio.get_running_loop().time()  # nothing was read during the pause
                connection.transport.resume_reading()

    # --- lines in, as Subscription hands them on

    def begun(self, fields: dict[str, Any]) -> None:
        self.store = str(fields["store"])
        self._arrived = fields["after"]  # for a name, the acked position; else the requested one in the store's form
        if self._handled is None:
            self._handled = self._given = fields["after"]
        if self._began_at is None:
            self._began_at = asyncio.get_running_loop().time()
            self.head = fields["head"]
        self._began.set()

    def delivered(self, lines: list[bytes]) -> None:
        self._outage.over()
        events = [DeliveredEvent(line[_START:-1]) for line in lines]
        follow(self._arrived, events)
        self._inbox.put(events)
        self._arrived = events[-1].position
        self._arrived_events += len(events)
        self._ended = self._ended or self._arrived_events == self._limit
        if self._inbox.is_full and self._subscription:
            self._paused = True
            self._subscription.connection.transport.pause_reading()
        self._something.set()

    def said(self, status: Status, seq: Position, fields: dict[str, Any]) -> None:
        self._arrived = seq
        if status is not Status.ERROR:
            self._outage.over()
            self._inbox.put((status, seq, fields))
            self._ended = self._ended or status is Status.END
            self._something.set()

    def acked(self, taken: bool) -> None:
        self._acks.answered(taken)
        if taken and self._acks.due:
            self._ack()
        self._something.set()

    def failed(self, error: Exception) -> None:
        if isinstance(error, AnotherStore) and self._on_another_store:
            self.store = error.found
            self._arrived = 0
            self._inbox.put(error)
        else:
            self._failure = error
            self._began.set()
        self._something.set()

    # --- connections

    async def _keep_subscribed(self) -> None:
        try:
            while True:
                why = await self._subscribe_once()
                if self._ended or self._failure:
                    return
                await asyncio.sleep(self._outage.pause_s(why))
        except Exception as error:  # GaveUp, or a defect
            self.failed(error)

    async def _subscribe_once(self) -> str:
        """Connect, and stay until the connection is over; return why it is."""
        subscription = Subscription(self, self._command(), self.store)
        try:
            reached = await subscription.connect(self._server, self._disappointing)
        except OSError as error:
            return f"cannot connect: {reason(error)}"
        self._paused = False
        self._subscription = subscription
        connection = subscription.connection
        try:
            while not connection.over.done():
                await asyncio.wait([connection.over], timeout=TICK_S)
                self._ack()
                self._notice_silence(subscription)
            return connection.over.result()
        finally:
            connection.transport.abort()
            self._disappointing = None if connection.has_spoken else reached.address
            self._subscription = None
            if self._name is not None and not self._ended:
                self._arrived_events -= self._inbox.drop()
                self._acks.forget()
            self._something.set()

    def _command(self) -> bytes:
        now = asyncio.get_running_loop().time()
        return self._request.line(self._arrived, self._arrived_events, now - (self._began_at or now))

    def _notice_silence(self, subscription: Subscription) -> None:
        connection = subscription.connection
        silent_s = asyncio.get_running_loop().time() - connection.heard_at
        if not subscription.is_answered:
            if silent_s >= REPLY_TIMEOUT_S:
                connection.end(f"no answer for {REPLY_TIMEOUT_S:g} s; is this the acked port?")
        elif 0 < SILENT_BEATS * self._beat_s <= silent_s and not self._paused and not self._ended:
            connection.end(f"nothing heard for {SILENT_BEATS * self._beat_s} s")

    # --- acks

    def _ack(self) -> None:
        if self._subscription:
            self._acks.send(self._subscription)

    async def _finish_acks(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_ACK_S):
                while self._acks.waiting and self._subscription:
                    self._something.clear()
                    self._ack()
                    await self._something.wait()
        if self._acks.waiting:
            self._on_trouble("no answer to the last ack: the events since the previous ack may come again")


_START: Final = len(EVENT_START)
