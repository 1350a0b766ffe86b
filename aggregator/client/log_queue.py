"""Lines of log records that have no ack yet: filled by the threads of a program, emptied by the thread that sends."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class LogQueue:
    """Bounded in lines and bytes. Lines that were sent and have no ack count too."""

    def __init__(self, lines: int, size_bytes: int, on_line: Callable[[], None]) -> None:
        """``on_line`` is called when there is a line to take and there was none before."""
        self._most_lines, self._most_bytes = lines, size_bytes
        self._on_line = on_line
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._taken: dict[int, bytes] = {}
        self._number = 0
        self._bytes = 0
        self._untold = 0  # lines dropped since drops were last reported
        self._acked = 0
        self._stuck_at = -1  # the number of acks when a wait last timed out
        self.closed = False

    def __len__(self) -> int:
        """How many lines have no ack."""
        return len(self._waiting) + len(self._taken)

    def put(self, line: bytes, block_s: float) -> bool:
        """Add a line, if there is room for it within this time; return whether there was."""
        with self._changed:
            if block_s > 0 and not self._has_room(line):
                self._changed.wait_for(lambda: self._has_room(line) or self.closed, block_s)
            if self.closed or not self._has_room(line):
                self._untold += 1
                return False
            self._add(line)
            return True

    def _has_room(self, line: bytes) -> bool:
        return len(self) < self._most_lines and (not self._bytes or self._bytes + len(line) <= self._most_bytes)

    def _add(self, line: bytes) -> None:
        self._number += 1
        self._bytes += len(line)
        self._waiting.append((self._number, line))
        if len(self._waiting) == 1:
            self._on_line()

    def take(self) -> tuple[int, bytes] | None:
        """The next line to be sent, with its number."""
        with self._changed:
            if not self._waiting:
                return None
            number, line = self._waiting.popleft()
            self._taken[number] = line
            return number, line

    def take_back(self) -> None:
        """Let the lines that were taken and have no ack be sent again."""
        with self._changed:
            self._waiting.extendleft(reversed(self._taken.items()))
            self._taken.clear()

    def answered(self, number: int) -> None:
        """Remove a line that has its final reply."""
        with self._changed:
            self._bytes -= len(self._taken.pop(number))
            self._acked += 1
            self._changed.notify_all()

    def untold(self, make_line: Callable[[int], bytes] | None = None) -> int:
        """How many lines were dropped since a call last returned their number.

        With ``make_line`` the result is 0 until half of the queue is free; then a line that is made from the number
        is queued in place of the dropped lines.
        """
        with self._changed:
            count = self._untold
            if make_line and count:
                if len(self) > self._most_lines // 2:
                    return 0
                self._add(make_line(count))
            self._untold = 0
            return count

    def wait(self, wait_s: float) -> None:
        """Wait until every line has its ack, but not if the last wait timed out and no ack has come since."""
        with self._changed:
            if self._stuck_at != self._acked and not self._changed.wait_for(lambda: not len(self), wait_s):
                self._stuck_at = self._acked

    def close(self) -> None:
        """Take no more lines."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
