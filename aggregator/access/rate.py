"""How fast an identity is read: events and bytes a second. This module computes the pauses; connections make them."""

from __future__ import annotations

from typing import Final

BURST_S: Final = 0.5
"""The seconds' worth that may come at once: what a sender gathers for half a second is not slowed."""


class _Clock:
    """When everything taken so far would have ended at this rate (the virtual scheduling of GCRA, ITU-T I.371)."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._due = 0.0

    def take(self, amount: int, now: float) -> float:
        self._due = max(self._due, now - BURST_S) + amount / self._per_s
        return self.pause_s(now)

    def pause_s(self, now: float) -> float:
        return self._due - now


class Rate:
    """The rates of one identity, for all its connections together."""

    def __init__(self, events_per_s: float | None, bytes_per_s: float | None) -> None:
        self._events = None if events_per_s is None else _Clock(events_per_s)
        self._bytes = None if bytes_per_s is None else _Clock(bytes_per_s)

    def pause_s(self, now: float) -> float:
        """The seconds until more may be read, whichever connection has used the rate; 0 or less: at once."""
        return max((clock.pause_s(now) for clock in (self._events, self._bytes) if clock), default=0.0)

    def take_events(self, count: int, now: float) -> float:
        """Note that events were taken at ``now``; return the seconds until more may be read, 0 or less: at once."""
        return self._events.take(count, now) if self._events else 0.0

    def take_bytes(self, count: int, now: float) -> float:
        """The same for bytes that were read."""
        return self._bytes.take(count, now) if self._bytes else 0.0
