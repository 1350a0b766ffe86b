"""One reader of the feed: what it wants, and how far it has come."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from aggregator.storage.engine import Position
from aggregator.wire.interest import Interest


class Receiver(Protocol):
    """What takes the lines of a subscription: a connection."""

    @property
    def peer(self) -> str:
        """The client's name in the log."""

    def push(self, data: bytes) -> bool:
        """Write whole lines; return whether there is room for more."""

    def subscription_over(self) -> None:
        """Note that no more lines follow."""


@dataclass(eq=False, slots=True)
class Subscription:
    """One reader. It is counted once admitted. It gets lines only after it has begun, and none when it is over."""

    receiver: Receiver
    interest: Interest
    position: Position
    """Every wanted event up to here has been delivered, so the reader can safely resume from here at any time."""
    until: Position | None = None
    left: int | None = None
    """How many events are left until its end, if there is a limit."""
    beat_s: float = 15.0
    name: str | None = None
    """The name of its cursor, if it has one."""
    claim: str | None = None
    """Its claim to that name, on a shared store."""
    sent: Position = field(init=False)
    """The last position that the reader knows: that of the last line without an event, moved past the events since."""
    begun: bool = False
    """Whether the reply to its command has been written."""
    over: bool = False
    last_line: bytes | None = None
    """The line that it gets when it begins, if it is over by then."""
    room: bool = True
    """Whether the receiver has room for more."""
    queued: bool = False
    """Whether it waits for a slice."""
    slices: int = 1
    """How many slices are read for it at once."""
    live: bool = False
    """Whether commits are written to it as they are published."""
    caught_up: bool = False
    delivered: int = 0
    quiet_since: float = field(default_factory=time.monotonic)
    stalled_since: float | None = None

    def __post_init__(self) -> None:
        self.sent = self.position

    @property
    def bounded(self) -> bool:
        """Whether it has an end. It then always reads from the store, where it can be cut exactly."""
        return self.until is not None or self.left is not None
