"""Pauses between attempts: a restart is hardly noticed, and a server that is down for hours is not hammered."""

from __future__ import annotations

import random
from typing import Final

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0


class Backoff:
    """Pauses that double from the first to the longest, until ``reset`` is called after a success."""

    def __init__(self) -> None:
        self.pause_s = FIRST_PAUSE_S
        """The next pause, at most."""

    def next_s(self) -> float:
        """How long to wait now. Randomness keeps clients from coming back all at once."""
        pause_s = self.pause_s
        self.pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return pause_s * random.uniform(0.5, 1)  # noqa: S311

    def reset(self) -> None:
        self.pause_s = FIRST_PAUSE_S
