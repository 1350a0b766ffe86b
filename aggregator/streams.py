"""Standard input, output and error as the caller left them: closed, full, non-blocking, or read by nobody."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

STDOUT: Final = 1
STDERR: Final = 2

QUEUE_BYTES: Final = 1 << 20
"""Limit of the lines that wait to be written: some 10,000. Past it, lines are left out until all waiting lines are
written."""


def open_missing() -> None:
    """Put /dev/null where a standard stream is closed.

    Otherwise the next file that is opened, perhaps the database, would get the descriptor's number, and text meant for
    people would be written to that file. ``sys.stdin`` stays None, because reading events from a closed stream is an
    error.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(fd)
    for fd, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w", closefd=False))  # noqa: SIM115


def write(fd: int, data: bytes) -> tuple[bytes, OSError | None]:
    """Write all of ``data``, however long that takes. Return what could not be written, and the error.

    It does not use ``sys.stdout`` and ``sys.stderr``: they keep what could not be written, and try again at exit.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:  # another program that shares the stream has made it non-blocking
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
        except OSError as error:
            return bytes(rest), error
    return b"", None


class LineWriter:
    """Writes lines in order, in a thread of its own. ``put`` never waits for the program that reads them.

    A terminal stopped with Ctrl-S, or a full pipe, makes a write take for ever. Lines left out during that time are
    counted, and the line that ``gap`` makes takes their place. A line that could not be written is tried again at the
    next ``put`` or ``flush``.
    """

    def __init__(self, fd: int, gap: Callable[[int], bytes]) -> None:
        self._fd = fd
        self._gap = gap
        self._changed = threading.Condition()  # held only briefly; guards the fields below
        self._lines: deque[bytes] = deque()  # the first is being written
        self._size = 0
        self._left_out = 0  # lines since the last one in ``_lines``
        self._failed = False
        threading.Thread(target=self._write_all, name="lines", daemon=True).start()

    def put(self, line: bytes) -> None:
        """Queue a line, or count it as left out."""
        with self._changed:
            if self._left_out or (self._lines and self._size + len(line) > QUEUE_BYTES):
                self._left_out += 1
            else:
                self._append(line)
            self._try()

    def flush(self, timeout_s: float) -> None:
        """Wait until everything that can be written is written, but no longer than ``timeout_s``."""
        with self._changed:
            self._try()
            self._changed.wait_for(lambda: self._failed or not self._lines, timeout_s)

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)

    def _try(self) -> None:
        self._failed = False
        self._changed.notify_all()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines and not self._failed)
                line = self._lines[0]
            rest, error = write(self._fd, line)
            with self._changed:
                self._size -= len(line) - len(rest)
                self._failed = error is not None
                if error:
                    self._lines[0] = rest
                else:
                    self._lines.popleft()
                if self._left_out and not self._lines:
                    self._append(self._gap(self._left_out))
                    self._left_out = 0
                self._changed.notify_all()
