"""Bytes to lines. Other protocols are told apart here too, because they have no lines of ours."""

from __future__ import annotations

import re
from typing import Final

BOM: Final = b"\xef\xbb\xbf"

# How much of a first line is looked at to tell HTTP and TLS apart: the request line that common servers accept.
_HEAD_BYTES = 8192

_CR = b"\r"[0]

# A request line, or what is enough to know a request line that is cut short by a limit. A web page can make a browser
# send only GET, HEAD and POST unasked; the second form covers every other HTTP client. An event may hold such a text.
_HTTP = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE|CONNECT|PRI) |[A-Za-z][!-~]* [!-~]+ HTTP/[0-9]")
HTTP_REPLY: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 66\r\nConnection: close\r\n\r\n"
    b"This port takes newline-delimited JSON over plain TCP, not HTTP.\r\n"
)

# RFC 8446, section 5.1: a handshake record starts with type 22 and the legacy version's high byte, 3.
TLS_HELLO: Final = b"\x16\x03"
TLS_REPLY: Final = b"\x15\x03\x01\x00\x02\x02\x46"
"""A fatal protocol_version alert (RFC 8446, section 6): TLS clients print it instead of waiting."""


class LineSplitter:
    """Cuts a stream of bytes into lines, whatever the pieces it arrives in.

    A line comes without its LF and without one CR before it; empty lines are kept, so that lines can be counted.
    ``None`` stands for a line longer than ``max_line_bytes``: it appears once, as soon as that is known. At most
    that many bytes (and a CR) are held back. Each byte is searched once.
    """

    foreign_reply: bytes | None = None
    """Set once the stream turns out to speak HTTP or TLS: what to answer. No line is returned from then on."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max = max_line_bytes
        self._rest = bytearray()  # an unterminated line so far
        self._skipping = False  # inside an over-long line already reported
        self._in_first_line = True

    @property
    def unfinished(self) -> bool:
        """Whether a line is held that has not ended yet; the tail of an over-long one is not held."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[bytes | None]:
        """Take the next bytes; return the lines that they complete."""
        if self._in_first_line and not self.foreign_reply:
            self._look_for_foreign_protocol(data)
        if self.foreign_reply:
            return []
        head, *others = data.split(b"\n")
        lines: list[bytes | None] = []
        if others:
            last = others.pop()
            if self._skipping:
                self._skipping = False
            else:
                self._rest += head
                lines.append(self._end_line(bytes(self._rest)))
                self._rest.clear()
            if len(data) <= self._max and b"\r" not in data:  # one byte is found much faster than two
                lines += others  # nothing to cut off, nothing too long: the common case, without a call per line
            else:
                lines += map(self._end_line, others)
            head = last
        if not self._skipping:
            self._rest += head
            self._report_overlong(lines)
        return lines

    def finish(self) -> list[bytes | None]:
        """Take the orderly end of the stream: the unterminated rest, if there is one, is a line too."""
        if not self._rest or self.foreign_reply:
            return []
        line = self._end_line(bytes(self._rest))
        self._rest.clear()
        return [line]

    def _look_for_foreign_protocol(self, data: bytes) -> None:
        size = min(_HEAD_BYTES, self._max)
        first_line, _, _ = (self._rest[:size] + data[:size])[:size].partition(b"\n")
        if first_line.startswith(TLS_HELLO):
            self.foreign_reply = TLS_REPLY
        elif _HTTP.match(first_line):
            self.foreign_reply = HTTP_REPLY

    def _end_line(self, line: bytes) -> bytes | None:
        if line.endswith(b"\r"):
            line = line[:-1]
        first, self._in_first_line = self._in_first_line, False
        if len(line) > self._max:
            return None
        return line.removeprefix(BOM) if first else line

    def _report_overlong(self, lines: list[bytes | None]) -> None:
        excess = len(self._rest) - self._max
        # One byte over the limit may still turn out to be the CR of the line's end.
        if excess > 1 or (excess == 1 and self._rest[-1] != _CR):
            lines.append(None)
            self._rest.clear()
            self._skipping = True
            self._in_first_line = False
