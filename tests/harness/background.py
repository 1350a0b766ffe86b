"""Work that runs in parallel with a test. Neither of the two may have to wait for the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final

FINISH_S: Final = 60.0
"""Longer than any work takes once the test has done its part. Work that has not ended by then hangs."""


class Background(threading.Thread):
    """Work in its own thread. Wait for its end with ``finish``, or let a ``with`` block do so."""

    def __init__(self, work: Callable[[], object], name: str | None = None) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as failure:
            self._failure = failure

    def finish(self, timeout_s: float = FINISH_S) -> None:
        """Wait for the end of the work; raise any exception that it raised."""
        self.join(timeout_s)
        assert not self.is_alive(), f"{self.name} does not end"
        self.check()

    def check(self) -> None:
        """Raise any exception that the work has raised so far."""
        if self._failure:
            raise self._failure

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()


def in_background(work: Callable[[], object]) -> Background:
    """Start this work now."""
    return Background(work)
