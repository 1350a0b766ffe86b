"""Turns of the event loop that take long: one line of a mebibyte can take 0.1 s.

After each slow turn, the loop has as much time for everything else as that turn took, whichever clients send such
lines, and however many.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

SLOW_TURN_S: Final = 0.005
"""A turn that keeps the processor busy for longer is slow. A turn of ordinary lines takes 1 ms."""


class SlowTurns:
    """Gives the clients that had a slow turn their next turns one at a time, each after a rest."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._rest_until = 0.0  # time.monotonic(), because uvloop's own time stands still during a turn
        self._timer: asyncio.TimerHandle | None = None

    def rest(self, took_s: float, callback: Callable[[], None]) -> None:
        """Note that a client's turn took ``took_s``; call back when its next turn may begin."""
        self._rest_until = max(self._rest_until, time.monotonic()) + took_s
        self._waiting.append(callback)
        if not self._timer:
            self._wait()

    def _wait(self) -> None:
        delay_s = max(0.0, self._rest_until - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        self._timer = None
        rested = time.monotonic() >= self._rest_until
        callback = self._waiting.popleft() if rested else None
        if self._waiting:
            self._wait()
        if callback:
            callback()
