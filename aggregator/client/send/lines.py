"""Bytes of a file to lines that know their offsets, whatever the pieces in which the file is read.

Memory is bounded by one piece and one line, however large the file is.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from aggregator.wire.lines import BOM

MAX_LINE_BYTES: Final = 64 << 20
"""A longer line is skipped instead of loaded. This is far above what any server is set to take."""

_NUL: Final = b"\0"


class Line(NamedTuple):
    """A line's 1-based number, the offset of the byte after it, and its content; None for a line too long to load."""

    number: int
    end: int
    content: bytes | None


class Lines:
    """Cuts a file into lines.

    A line is returned without its LF, without one CR before it, and without NULs at its head: a file that is emptied
    while its writer goes on at its old offset begins with as many NULs as the file had bytes. A BOM at the start of the
    file is dropped too.
    """

    def __init__(self, start: int = 0, number: int = 0) -> None:
        self._number = number
        self._end = start  # of the last line that has ended
        self._size = 0  # of what has been read of the next line
        self._rest = bytearray()  # the same without NULs at its head, and empty if it is too long
        self._kept = 0  # the length that ``_rest`` has, or would have

    @property
    def number(self) -> int:
        """How many lines have ended."""
        return self._number

    @property
    def end(self) -> int:
        """The offset after the last line that has ended."""
        return self._end

    @property
    def is_fresh(self) -> bool:
        """Whether nothing has been read yet."""
        return not self._number and not self._size

    def feed(self, data: bytes) -> list[Line]:
        """Take the next bytes; return the lines that they complete."""
        *ends, rest = data.split(b"\n")
        lines = [self._end_line(end) for end in ends]
        if rest:
            self._keep(rest)
        return lines

    def skip(self, size: int) -> None:
        """Take this many NULs that are not worth reading: they are a part of the next line, and are dropped."""
        self._size += size

    def finish(self) -> list[Line]:
        """Take the end of the file: an unterminated rest is a line too, but space reserved with NULs is not."""
        if not self._kept:
            return []
        self._rest = self._rest.rstrip(_NUL)
        line = self._end_line(b"")
        self._end -= 1  # there was no LF
        return [line._replace(end=self._end)]

    def _end_line(self, end: bytes) -> Line:
        content: bytes | None = end
        size = len(end)
        if self._size:
            self._keep(end)
            size = self._size
            content = bytes(self._rest) if self._kept <= MAX_LINE_BYTES else None
            self._rest.clear()
            self._size = self._kept = 0
        if content is not None:
            content = content.removesuffix(b"\r")
            if content.startswith(_NUL):
                content = content.lstrip(_NUL)
            if self._number == 0:
                content = content.removeprefix(BOM)
        self._end += size + 1
        self._number += 1
        return Line(self._number, self._end, content)

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if not self._kept:
            part = part.lstrip(_NUL)
        self._kept += len(part)
        if self._kept <= MAX_LINE_BYTES:
            self._rest += part
        else:
            self._rest.clear()
