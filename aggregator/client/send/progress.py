"""What a run shows as it proceeds: complaints, and on a terminal a bar of what has been acked."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from aggregator.client.screen import Screen
from aggregator.client.terminal import printable


class Progress:
    """Shows how far a run has got. The bar needs tqdm, which is in the extra "cli"."""

    def __init__(self, screen: Screen, total_bytes: int | None, *, has_bar: bool) -> None:
        self._screen = screen
        self._started_at = time.monotonic()
        self._bar: Any = None
        if has_bar and screen.is_terminal:
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self._bar = tqdm(
                    total=total_bytes, unit="B", unit_scale=True, leave=False, dynamic_ncols=True, file=screen,
                    smoothing=0,  # the rate since the start: it falls while nothing is acked
                )  # fmt: skip

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_at

    def say(self, line: str) -> None:
        """Show one line that stays."""
        if self._bar is None:
            self._screen.say(line)
        else:
            self._bar.clear()
            self._screen.say(line)
            self._bar.refresh()

    def show(self, acked_bytes: int, acked_events: int, waits_for: str) -> None:
        """Draw the bar again. ``waits_for`` says what the run waits for, if anything."""
        if self._bar is not None:  # a bar without a total has no truth value
            self._bar.n = acked_bytes
            rate = f"{acked_events / self.elapsed_s:,.0f} events/s"
            self._bar.set_postfix_str(printable(waits_for) or rate, refresh=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
