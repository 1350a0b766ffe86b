"""The output to one client: replies in the order of their lines. The outbox has no transport.

Each line gets a place in one FIFO. A commit or a command fills the place. A command may start when its place is the
first, that is, when everything sent before it has been committed and answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine


class Place:
    """A place in the FIFO, for the reply to a number of lines. ``command`` fills it once it is the first place."""

    __slots__ = ("command", "lines", "reply", "then")

    def __init__(self, lines: int, command: Callable[[Place], Coroutine[None, None, None]] | None = None) -> None:
        self.lines = lines
        self.command = command
        self.reply: bytes | None = None
        self.then: Callable[[], None] | None = None
        """Called when the reply has been written."""


class Outbox:
    """The replies to one client. If ``muted``, it drops them, but still counts lines until they are settled."""

    def __init__(self, muted: bool) -> None:
        self.muted = muted
        self.unanswered = 0
        """Lines and batch members read, and not yet replied to (or, when muted, not yet settled)."""
        self._places: deque[Place] = deque()
        self._then: list[Callable[[], None]] = []

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be filled or taken."""
        return not self._places

    @property
    def command(self) -> Place | None:
        """The first place, if it is a command's and is not filled yet."""
        first = self._places[0] if self._places else None
        return first if first and first.command and first.reply is None else None

    @property
    def answers_wait(self) -> bool:
        """Whether a reply could go out, if there were room."""
        return bool(self._places) and self._places[0].reply is not None

    def reserve(self, lines: int, command: Callable[[Place], Coroutine[None, None, None]] | None = None) -> Place:
        """Take the next place. It has to be filled once."""
        place = Place(lines, command)
        self.unanswered += lines
        if not self.muted:
            self._places.append(place)
        return place

    def fill(self, place: Place, reply: bytes) -> None:
        """Put the encoded reply, or replies, in its place."""
        place.reply = reply
        if self.muted:
            self.unanswered -= place.lines

    def take(self) -> bytes:
        """All that can go out now, in order."""
        ready: list[bytes] = []
        while self._places and (reply := self._places[0].reply) is not None:
            ready.append(reply)
            place = self._places.popleft()
            self.unanswered -= place.lines
            if place.then:
                self._then.append(place.then)
        return b"".join(ready)

    def written(self) -> None:
        """Call what may follow the replies that were taken, because they have been written."""
        begin, self._then = self._then, []
        for then in begin:
            then()

    def mute(self) -> None:
        """Drop every reply, now and later. Events that are being stored are still counted until they are settled."""
        self.muted = True
        for place in self._places:
            if place.reply is not None or place.command:  # the others are filled when their events are settled
                self.unanswered -= place.lines
                place.lines = 0
        self._places.clear()
