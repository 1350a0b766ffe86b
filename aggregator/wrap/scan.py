"""Where a JSON object that arrives in pieces ends."""

from __future__ import annotations

import re
from typing import Final

_OUTSIDE: Final = re.compile(rb'[^"{}]*+')
_STRING: Final = re.compile(rb'(?:[^"\\\n]|\\[^\n])*+')  # to its quote, to a line feed, or to a backslash at the end
_QUOTE, _OPEN, _CLOSE, _LF, _BACKSLASH = b'"{}\n\\'


class Broken(Exception):
    """This is not JSON: a JSON string holds no line feed. The scanner's ``position`` is that of the line feed."""


class ObjectScanner:
    """Finds the end of an object that begins in a buffer. Each byte is examined once, however the buffer grows."""

    def __init__(self, start: int = 0) -> None:
        self.position = start
        """How far the buffer was examined. A caller that removes bytes from its front subtracts their number."""
        self._depth = 0
        self._in_string = False

    def find_end(self, buffer: bytes | bytearray) -> int | None:
        """The index after the object; None if the object goes on. Raises Broken."""
        at, size = self.position, len(buffer)
        while at < size:
            if self._in_string:
                at = _end(_STRING, buffer, at)
                if at == size:
                    break
                if buffer[at] == _BACKSLASH:
                    if at + 1 == size:
                        break
                    at += 1
                if buffer[at] == _LF:
                    self.position = at
                    raise Broken
                self._in_string = False
                at += 1
                continue
            at = _end(_OUTSIDE, buffer, at)
            if at == size:
                break
            mark = buffer[at]
            at += 1
            if mark == _QUOTE:
                self._in_string = True
            elif mark == _OPEN:
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    self.position = at
                    return at
        self.position = at
        return None


def _end(pattern: re.Pattern[bytes], buffer: bytes | bytearray, at: int) -> int:
    match = pattern.match(buffer, at)
    assert match is not None
    return match.end()
