"""When handshakes of TLS get their turns: they take long, and anybody can ask for one."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

STEPS_A_TURN: Final = 8
"""Steps of handshakes in one turn of the loop. One takes 0.2 ms (ECDSA) to 1.1 ms (RSA, client certificate, CRL)."""


class HandshakeTurns:
    """Runs the steps of handshakes: a few in each turn of the loop, and then none for as long as they took.

    So the clients that are known already have at least half of the loop, however many strangers there are.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def run(self, step: Callable[[], None]) -> None:
        """Run this step when it is its turn."""
        self._waiting.append(step)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = bool(self._waiting)
        if not self._scheduled:
            return
        started_s = time.perf_counter()
        try:
            for _ in range(min(STEPS_A_TURN, len(self._waiting))):
                self._waiting.popleft()()
        finally:  # whatever one of them raises, the others have their turns
            asyncio.get_running_loop().call_later(time.perf_counter() - started_s, self._turn)
