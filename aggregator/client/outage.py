"""A time without the server: it is reported once, attempts follow after growing pauses, and they may be given up."""

from __future__ import annotations

import time
from collections.abc import Callable

from aggregator.client.backoff import Backoff
from aggregator.client.sender import GaveUp


class Outage:
    """Knows whether there is an outage, and since when."""

    def __init__(self, address: str, on_trouble: Callable[[str], object], give_up_after_s: float | None) -> None:
        self._address = address
        self._on_trouble = on_trouble
        self._give_up_after_s = give_up_after_s
        self._since: float | None = None
        self._backoff = Backoff()

    def over(self) -> None:
        """End the outage: the server does what it should."""
        self._since = None
        self._backoff.reset()

    def pause_s(self, trouble: str) -> float:
        """How long to wait before the next attempt. Raises GaveUp."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            if self._give_up_after_s != 0:
                self._on_trouble(f"{self._address}: {trouble}; trying again")
        left_s = float("inf") if self._give_up_after_s is None else self._since + self._give_up_after_s - now
        if left_s <= 0:
            raise GaveUp(trouble)
        return min(self._backoff.next_s(), left_s)
