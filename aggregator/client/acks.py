"""Acks of a reader with a name: one ack at a time is in flight, for all events that are done by then."""

from __future__ import annotations

from typing import Final

from aggregator.client.delivered import DeliveredEvent
from aggregator.client.subscription import Subscription

DUE_EVENTS: Final = 1_000
"""This many events that are done are acked at once, fewer with the next tick."""


class Acks:
    """Which events are done and not acked, and which ack is not answered."""

    def __init__(self) -> None:
        self._done: DeliveredEvent | None = None
        self._count = 0
        self._sent: DeliveredEvent | None = None

    @property
    def waiting(self) -> bool:
        """Whether something that is done may not be on the server's disk yet."""
        return bool(self._done or self._sent)

    @property
    def due(self) -> bool:
        """Whether there is enough to ack."""
        return self._count >= DUE_EVENTS

    def done(self, event: DeliveredEvent) -> None:
        """Record that this event and all before it are handled."""
        self._done = event
        self._count += 1

    def send(self, subscription: Subscription) -> None:
        """Ack what is done, unless an ack is in flight."""
        if self._done and subscription.may_ack:
            self._sent, self._done, self._count = self._done, None, 0
            subscription.ack(self._sent.position)

    def answered(self, taken: bool) -> None:
        """Record the answer. An ack that was not taken is sent again: only a new connection brings its events again."""
        if not taken:
            self._done = self._done or self._sent
        self._sent = None

    def forget(self) -> None:
        """Forget everything: the connection is lost, so the events will come again."""
        self._done = self._sent = None
        self._count = 0
