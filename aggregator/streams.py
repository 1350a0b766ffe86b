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
"""Lines that wait to be written, some 10,000. Further lines are left out until all of these are written."""


def open_missing() -> None:
    """Put /dev/null where a standard stream is closed.

    The next file that is opened would get its number: a database, and what is meant for people would be written to it.
    ``sys.stdin`` stays None, because it is an error to read events from what is closed.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(fd)
    for fd, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w", closefd=False))  # noqa: SIM115


def write(fd: int, data: bytes) -> tuple[bytes, OSError | None]:
    """Write all of it, however long that takes. Return what is left, and why.

    Not through ``sys.stdout`` and ``sys.stderr``: they keep what could not be written, and try again at exit.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:  # another program has set it so for all that share it
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
        except OSError as error:
            return bytes(rest), error
    return b"", None


class LineWriter:
    """Writes lines in order, in a thread of its own. No caller ever waits for who reads them.

    A terminal that was stopped with Ctrl-S, or a full pipe, makes a write take for ever. Lines that are left out then
    are counted, and ``gap`` makes the line that says so in their place. A line that cannot be written is tried again
    with the next one.
    """

    def __init__(self, fd: int, gap: Callable[[int], bytes]) -> None:
        self._fd = fd
        self._gap = gap
        self._changed = threading.Condition()  # held for moments only; guards what follows
        self._lines: deque[bytes] = deque()  # the first is being written
        self._size = 0
        self._left_out = 0  # since the last one of them
        self._failed = False
        threading.Thread(target=self._write_all, name="lines", daemon=True).start()

    def put(self, line: bytes) -> None:
        """Have a line written, or counted as left out."""
        with self._changed:
            if self._left_out or (self._lines and self._size + len(line) > QUEUE_BYTES):
                self._left_out += 1
            else:
                self._append(line)
            self._try()

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is written that can be, but not for ever."""
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
