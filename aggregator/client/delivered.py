"""A stored event as it is delivered: its bytes as they came, parsed only on demand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from aggregator import json_text
from aggregator.position import behind

_SEQ: Final = b',"seq":'
_RECEIVED_AT: Final = b',"received_at":"'


class DeliveredEvent:
    """One event, with its seq and the time of its receipt.

    The server appends two members to the event, ``seq`` and ``received_at``. Events may have members of these names
    themselves, so the last ones count.
    """

    __slots__ = ("_position", "_value", "line")

    def __init__(self, line: bytes) -> None:
        self.line = line
        """The event with ``seq`` and ``received_at`` at its end, as ``EVENTS`` shows it."""
        self._position: int | str | None = None
        self._value: Any = None

    @property
    def position(self) -> int | str:
        """Where a reader goes on that has handled this event and all before it: the seq, or a text."""
        return self.seq if self._position is None else self._position

    @property
    def seq(self) -> int:
        """The event's number, which no other event has."""
        start = self.line.rindex(_SEQ) + len(_SEQ)
        return int(self.line[start : self.line.index(b",", start)])

    @property
    def received_at(self) -> str:
        """When the server stored the event, in the form of RFC 3339, in UTC."""
        start = self.line.rindex(_RECEIVED_AT) + len(_RECEIVED_AT)
        return self.line[start:-2].decode()

    @property
    def json(self) -> bytes:
        """The event byte for byte as it was sent, except for blanks around it."""
        return self.line[: self.line.rindex(_SEQ)] + b"}"

    @property
    def value(self) -> dict[str, Any]:
        """The decoded event. Digits that a float cannot hold are lost here, but not in ``json``."""
        if self._value is None:
            self._value = json_text.decode(self.json)
        found: dict[str, Any] = self._value
        return found

    @property
    def topic(self) -> str:
        """The event's topic."""
        return str(self.value["topic"])

    def __repr__(self) -> str:
        return f"DeliveredEvent({self.line!r})"


def follow(after: int | str | None, events: Iterable[DeliveredEvent]) -> None:
    """Give events their positions, for a reader that was at ``after`` and got these events next."""
    if isinstance(after, str):
        for event in events:
            event._position = after = behind(after, (event.seq,))
