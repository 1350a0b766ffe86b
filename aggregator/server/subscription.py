"""One reader of the feed: what it wants, and how far it has come."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from aggregator.storage.engine import Position
from aggregator.wire.interest import Interest


class Receiver(Protocol):
    """Where lines go: a connection."""

    @property
    def peer(self) -> str:
        """The client's name in the log."""

    def push(self, data: bytes) -> bool:
        """Write whole lines; return whether there is room for more."""

    def subscription_over(self) -> None:
        """Nothing follows."""


@dataclass(eq=False, slots=True)
class Subscription:
    """One reader. It counts once it is admitted; lines follow only once it has begun, and none when it is over."""

    receiver: Receiver
    interest: Interest
    position: Position
    """Every event up to it that is wanted was delivered: at any time a safe place to resume from."""
    until: Position | None = None
    left: int | None = None
    """Events until its end, if there is a limit."""
    beat_s: float = 15.0
    name: str | None = None
    """Its cursor's."""
    claim: str | None = None
    """With which it has claimed that on a shared store."""
    sent: Position = field(init=False)
    """The last position that the reader was told: of another line, and behind the events since."""
    begun: bool = False
    """Whether the reply to its command has left."""
    over: bool = False
    last_line: bytes | None = None
    """What it is told when it begins, if it is over by then."""
    room: bool = True
    """Whether the receiver takes more."""
    queued: bool = False
    """Whether it waits for a slice."""
    slices: int = 1
    """How much is read for it at once."""
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
        """Whether it ends by itself: then it always reads from the store, where it can be cut exactly."""
        return self.until is not None or self.left is not None
