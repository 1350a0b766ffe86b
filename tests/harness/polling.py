"""Waiting for something to happen. A test checks again and again until a deadline; it never only sleeps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

DEADLINE_S: Final = 30.0
"""Many times longer than anything here takes on a busy machine: what has not happened by then will not happen."""


def wait_until(condition: Callable[[], object], timeout_s: float = DEADLINE_S) -> None:
    """Poll until the condition holds. Raises AssertionError if it does not hold within this time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.005)


async def until(condition: Callable[[], object]) -> None:
    """Like ``wait_until``, in an event loop. Raises TimeoutError."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.002)
