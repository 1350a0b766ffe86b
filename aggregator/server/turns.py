"""Long work in short turns of the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

TURN_S: Final = 0.002
"""How long one answer is worked on before everybody else gets a turn: twice as long as a turn of ordinary lines."""


async def in_turns(things: Sequence[T]) -> AsyncIterator[T]:
    """Yield each of these things, with turns for everybody else in between."""
    began = time.monotonic()
    for thing in things:
        if time.monotonic() - began > TURN_S:
            await asyncio.sleep(0)
            began = time.monotonic()
        yield thing
