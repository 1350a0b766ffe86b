"""One run of a command that reads: its signals, its output, and what its end means."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, Final

from aggregator.client.read.cursor_file import BadCursor
from aggregator.client.read.output import Output
from aggregator.client.reply import NotOurProtocol, reason
from aggregator.client.screen import Screen
from aggregator.client.sender import GaveUp
from aggregator.client.subscription import AnotherStore, Gap, Refused, TakenOver

GIVE_UP_S: Final = 30.0
"""How long a command that has an end tries to reach its server: a restart takes less."""

INTERRUPTED: Final = 130


class Reading:
    """Runs a job until its end, until a signal, or until nobody reads its output any more."""

    def __init__(self, address: str, screen: Screen, output: Output, *, follow: bool) -> None:
        """With ``follow`` the job has no end of its own, so a signal is its orderly end."""
        self._address = address
        self._screen = screen
        self._output = output
        self._follow = follow
        self._interrupted = False

    async def run(self, job: Coroutine[Any, Any, None]) -> int:
        """Return the exit code."""
        task = asyncio.create_task(job)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, task)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup makes programs ignore it
            loop.add_signal_handler(signal.SIGHUP, task.cancel)
        self._output.when_closed(task.cancel)
        await asyncio.wait([task])
        if task.cancelled():
            return INTERRUPTED if self._interrupted and not self._follow else 0
        return self._exit_code(task.exception())

    def _on_signal(self, task: asyncio.Task[None]) -> None:
        if self._interrupted:
            os._exit(INTERRUPTED)
        self._interrupted = True
        task.cancel()

    def _exit_code(self, error: BaseException | None) -> int:
        if error is None or isinstance(error, BrokenPipeError):  # the reader has what it wanted
            return 0
        if isinstance(error, Gap | AnotherStore | TakenOver | Refused | GaveUp | NotOurProtocol):
            self._screen.say(f"aggregator: {self._address}: {error}")
        elif isinstance(error, BadCursor | ValueError):
            self._screen.say(f"aggregator: {error}")
        elif isinstance(error, OSError):
            self._screen.say(f"aggregator: {error.filename or self._output.name}: {reason(error)}")
        else:
            raise error
        return 1
