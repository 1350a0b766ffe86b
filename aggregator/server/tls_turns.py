"""The turns of TLS work that anybody can cause: handshakes, and what strangers (unauthenticated clients) send after."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

TURN_S: Final = 0.004
"""How long steps are run in one turn of the loop. A step of a handshake takes 0.2 ms (ECDSA) to 1.1 ms (RSA, client
certificate, CRL). The worst that a stranger sends takes 6 ms (``tls.STRANGER_BYTES``)."""

REST_S: Final = 0.001
"""The event loop (uvloop) sleeps for whole milliseconds, so shorter rests are added up."""


class TlsTurns:
    """Runs steps: a few in each turn of the loop, and then none for as long as they took.

    So the clients that are identified already have at least half of the loop, however many strangers there are.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False
        self._owed_s = 0.0
        self._rest_until = 0.0  # time.monotonic(), because uvloop's own time stands still during a turn

    def run(self, step: Callable[[], None]) -> None:
        """Run this step when it is its turn. A step that raises ends its turn, and harms no other."""
        self._waiting.append(step)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        started_s = time.monotonic()
        try:
            if started_s >= self._rest_until:
                while self._waiting and time.monotonic() - started_s < TURN_S:
                    self._waiting.popleft()()
        finally:
            self._owe(time.monotonic() - started_s)
            self._schedule()

    def _owe(self, took_s: float) -> None:
        self._owed_s += took_s
        if self._owed_s >= REST_S:
            self._rest_until = time.monotonic() + self._owed_s
            self._owed_s = 0.0

    def _schedule(self) -> None:
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            rest_s = max(0.0, self._rest_until - time.monotonic())
            asyncio.get_running_loop().call_later(math.ceil(rest_s * 1000) / 1000, self._turn)
