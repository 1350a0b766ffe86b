"""What a command knows of the client that sent it, and what it answers or raises."""

from __future__ import annotations

from typing import Any, Protocol

from aggregator.access.identity import Identity
from aggregator.server.caller import Caller
from aggregator.server.subscription import Receiver, Subscription
from aggregator.wire import Failure

Answer = dict[str, Any]


class Refused(Exception):
    """A valid command that cannot be carried out now."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class Asker(Receiver, Protocol):
    """The client that sent a command, as far as the command may use it."""

    caller: Caller
    subscription: Subscription | None
    last_subscription: Subscription | None
    """The latest subscription, even if it is over: the events that it delivered may still be acked."""

    @property
    def identity(self) -> Identity:
        """The client's identity."""

    def subscribe(self, subscription: Subscription) -> None:
        """Begin to deliver once the reply to this command has been written."""
