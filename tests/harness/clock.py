"""An event loop's clock that can be moved on: minutes pass in a moment, whatever the speed of the machine."""

from __future__ import annotations

import asyncio

import pytest


class Clock:
    """The clock of the running loop, until the test ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self._skipped_s = 0.0
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + self._skipped_s)

    def skip(self, seconds: float) -> None:
        """Move it on. Timers that are due then fire in the next turn of the loop, in their order."""
        self._skipped_s += seconds
