"""What one client gets besides replies: the lines of its subscription, written between replies as there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aggregator.access.identity import Identity
from aggregator.server.caller import Caller
from aggregator.server.feed import Feed
from aggregator.server.subscription import Subscription

HIGH_BYTES: Final = 256 * 1024
LOW_BYTES: Final = 64 * 1024
"""High and low water of what waits in this process for one subscriber; the rest waits in the store."""


class Deliveries:
    """The subscription of one client, if it has one, and how its lines are written. A client has one at most."""

    def __init__(
        self,
        peer: str,
        caller: Caller,
        feed: Feed,
        transport: asyncio.Transport,
        reply_buffer: tuple[int, int],
    ) -> None:
        self._peer = peer
        self.caller = caller
        """Who the client is."""
        self._feed = feed
        self._transport = transport
        self._reply_buffer = reply_buffer  # high and low water in bytes, while there is no subscription
        self.subscription: Subscription | None = None
        self.last_subscription: Subscription | None = None
        """The latest subscription, even if it is over."""
        self.stopped = False
        """Whether no more lines may be written, because the connection is ending."""
        self.on_over: Callable[[], None] = lambda: None
        self._full = False
        self._limit_write_buffer()

    @property
    def identity(self) -> Identity:
        """The client's identity. There is one, because no command is taken from a client without an identity."""
        assert self.caller.identity
        return self.caller.identity

    @property
    def peer(self) -> str:
        """The client's name in the log."""
        return self._peer

    # --- called by commands and by the feed

    def subscribe(self, subscription: Subscription) -> None:
        """Take a subscription. Its lines begin when the reply to the command that is being carried out has left."""
        self.subscription = self.last_subscription = subscription

    def push(self, data: bytes) -> bool:
        """Write whole lines; return whether there is room for more."""
        if self.stopped or self._transport.is_closing():
            return False
        self._transport.write(data)
        return not self._full

    def subscription_over(self) -> None:
        """Note that no more lines follow. The connection now ends if its client has closed its half."""
        self.subscription = None
        self._limit_write_buffer()
        asyncio.get_running_loop().call_soon(self.on_over)

    # --- called by the connection

    def begin(self) -> None:
        """Begin to deliver: the reply to the command that subscribed has been written."""
        if self.stopped:
            self.end()
        elif self.subscription:
            self._limit_write_buffer()
            self._feed.begin(self.subscription)

    def pause(self) -> None:
        """Pause deliveries: the client does not read for now."""
        self._full = True
        if self.subscription:
            self._feed.pause(self.subscription)

    def resume(self) -> None:
        """Resume deliveries: the client reads again."""
        self._full = False
        if self.subscription:
            self._feed.resume(self.subscription)

    def end(self) -> None:
        """Deliver no more."""
        if self.subscription:
            self._feed.end(self.subscription)
            self.subscription = None

    def _limit_write_buffer(self) -> None:
        if not self._transport.is_closing():
            high, low = (HIGH_BYTES, LOW_BYTES) if self.subscription else self._reply_buffer
            self._transport.set_write_buffer_limits(high=high, low=low)
