"""Standard error, written by a thread: a screen that is stopped, full or gone must not hold up the sending."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import threading
from queue import SimpleQueue
from typing import Final

from aggregator.client.terminal import printable

STDERR: Final = 2

MAX_WAITING: Final = 1000
"""Most messages that wait while standard error takes none; later messages are left out and counted."""

MAX_WAITING_DRAWS: Final = 10
"""The same limit for what a progress bar draws, because the next drawing replaces it anyway."""

CLOSE_S: Final = 2.0
"""How long the end of the program waits for a screen that is stopped."""

_GONE: Final = (errno.EPIPE, errno.EIO, errno.EBADF)
"""Errors that mean that nobody reads any more: a closed pipe, a terminal that was hung up. They are not failures."""


class Screen:
    """Takes text and returns at once. A progress bar may use it as a file."""

    def __init__(self) -> None:
        self.failed = False
        """Whether something could not be written, for any reason other than that nobody reads any more."""
        self.is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
        self._left_out = 0
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="screen", daemon=True)
        self._gone = sys.stderr is None  # the descriptor was closed when the program started
        if not self._gone:
            self._thread.start()

    def say(self, line: str) -> None:
        """Show one line of text as it is, but on a terminal without characters that could control it."""
        self._put(self.line(line), MAX_WAITING)

    def line(self, line: str) -> str:
        """The line in the form in which it is shown."""
        return (printable(line) if self.is_terminal else line) + "\n"

    def close(self) -> None:
        """Wait until everything is written, if that does not take long."""
        if self._left_out:
            left_out, self._left_out = self._left_out, 0
            self._put(
                f"aggregator: {left_out} messages were left out, because standard error did not accept them\n",
                sys.maxsize,
            )
        self._queue.put(None)
        if not self._gone:
            self._thread.join(CLOSE_S)

    # --- a file, as a progress bar sees it

    def write(self, text: str) -> None:
        self._put(text, MAX_WAITING_DRAWS)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self.is_terminal

    def fileno(self) -> int:
        return STDERR

    # --- the thread

    def _put(self, text: str, limit: int) -> None:
        if self._gone:
            return
        if self._queue.qsize() >= limit:
            self._left_out += limit == MAX_WAITING
            return
        self._queue.put(self._encode(text))

    def _encode(self, text: str) -> bytes:
        try:
            return text.encode(self.encoding, "surrogateescape")  # the bytes of a file's name as they are
        except UnicodeEncodeError:
            return text.encode(self.encoding, "backslashreplace")

    def _write_all(self) -> None:
        while (data := self._queue.get()) is not None:
            try:
                while data and not self._gone:
                    with contextlib.suppress(BlockingIOError):  # another program may have made it non-blocking
                        data = data[os.write(STDERR, data) :]
                        continue
                    select.select([], [STDERR], [])
            except OSError as error:
                self._gone = error.errno in _GONE
                self.failed = self.failed or not self._gone
