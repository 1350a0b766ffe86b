"""Bytes to lines. Other protocols are recognized here too, because their streams hold no lines of this protocol."""

from __future__ import annotations

import re
from collections import deque
from enum import Enum
from typing import Final

BOM: Final = b"\xef\xbb\xbf"

# How much of a first line is examined to recognize other protocols: the longest request line that common HTTP servers
# accept.
HEAD_BYTES: Final = 8192

START_BYTES: Final = 240
"""How much of a line is kept to show where it came from: 60 characters, each of which may take four bytes."""

_CR = b"\r"[0]

# A request line, or enough of its start to recognize it if a limit cuts it short. A web page can make a browser send
# only GET, HEAD and POST unasked; the second form covers every other HTTP client. An event may contain such a text.
HTTP_REQUEST: Final = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE|CONNECT|PRI) |[A-Za-z][!-~]* [!-~]+ HTTP/[0-9]"
)
# RFC 8446, section 5.1: a handshake record starts with type 22 and the legacy version's high byte, 3.
TLS_HELLO: Final = b"\x16\x03"
# A frame of RFC 6587, section 3.4.1: its length, a space, and what syslog or an event begins with.
_OCTETS = re.compile(rb"[1-9][0-9]{0,8} [<{]")

# The header in which a proxy names its client (haproxy.org, proxy-protocol.txt, section 2).
PROXY_V1: Final = re.compile(rb"PROXY (?:TCP[46] |UNKNOWN[ \r])")
PROXY_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"


class Foreign(Enum):
    """Another protocol, with its name for the log."""

    HTTP = "HTTP"
    TLS = "TLS"
    PROXY = "the PROXY protocol"


class Framing(Enum):
    """How a stream without line feeds seems to be framed, for the log."""

    NUL = "its events seem to end with NUL bytes"
    OCTETS = "it seems to count octets (RFC 6587)"
    ARRAY = "it seems to be one endless JSON array"
    NONE = "it holds no line feed"


class LineSplitter:
    """Cuts a stream of bytes into lines, whatever the pieces it arrives in.

    A line is returned without its LF and without one CR before it. Empty lines are kept, so that lines can be counted.
    ``None`` stands for a line longer than ``max_line_bytes``; it is returned once, as soon as the line is known to be
    too long. At most ``max_line_bytes`` (and a CR) are buffered. Each byte is searched once.
    """

    foreign: Foreign | None = None
    """Set once the stream turns out to be in another protocol. No line is returned from then on."""

    def __init__(self, max_line_bytes: int) -> None:
        self.max_line_bytes = max_line_bytes
        self._rest = bytearray()  # an unterminated line so far
        self.skipping = False
        """Whether the stream is inside an over-long line that has already been reported."""
        self._in_first_line = True
        self._start = b""  # the first bytes of the stream, while they may still begin a PROXY header of version 2
        self.skipped_bytes = 0
        """The total length of the over-long lines, as far as they have arrived."""
        self.starts: deque[bytes] = deque()
        """The first bytes of each over-long line, oldest first. The caller that reports a line removes its start."""
        self.framing = Framing.NONE
        """The framing of the last over-long line, or of the unfinished line when ``look_at_framing`` was called."""

    @property
    def unfinished(self) -> bool:
        """Whether a line has begun and not ended yet."""
        return bool(self._rest or self.skipping)

    @property
    def start(self) -> bytes:
        """The first bytes of the unfinished line."""
        return bytes(self._rest[:START_BYTES])

    def feed(self, data: bytes) -> list[bytes | None]:
        """Take the next bytes; return the lines that they complete."""
        if self._in_first_line and not self.foreign:
            data = self._look_for_foreign_protocol(self._start + data)
        if self.foreign:
            return []
        head, *others = data.split(b"\n")
        lines: list[bytes | None] = []
        if others:
            last = others.pop()
            if self.skipping:
                self.skipping = False
                self.skipped_bytes += len(head)
            else:
                if self._rest:
                    head = bytes(self._rest) + head
                    self._rest.clear()
                lines.append(self._end_line(head))
            if len(data) <= self.max_line_bytes and b"\r" not in data:  # one byte is found much faster than two
                lines += others  # nothing to cut off, nothing too long: the common case, without a call per line
            else:
                lines += map(self._end_line, others)
            head = last
        if self.skipping:
            self.skipped_bytes += len(head)
        elif head:
            self._rest += head
            self._report_overlong(lines)
        return lines

    def finish(self) -> list[bytes | None]:
        """Take the orderly end of the stream: an unterminated rest is a line too."""
        lines: list[bytes | None] = []
        if self._start and not self.foreign:
            self._in_first_line, start, self._start = False, self._start, b""
            lines += self.feed(start)
        if self._rest and not self.foreign:
            lines.append(self._end_line(bytes(self._rest)))
            self._rest.clear()
        return lines

    def drop_unfinished(self) -> bytes:
        """Drop the unfinished line; return its first bytes."""
        start = self._start or self.start
        self._start = b""
        self._rest.clear()
        return start

    def look_at_framing(self) -> Framing:
        """Return how the unfinished line seems to be framed."""
        if not self.skipping:
            self.framing = _framing(self._rest)
        return self.framing

    def _look_for_foreign_protocol(self, data: bytes) -> bytes:
        """Return the data, or nothing while the data may still be the start of a PROXY header."""
        self._start = b""
        if not self._rest and len(data) < len(PROXY_V2) and PROXY_V2.startswith(data):
            self._start = data
            return b""
        size = min(HEAD_BYTES, self.max_line_bytes)
        first_line, _, _ = (self._rest[:size] + data[:size])[:size].partition(b"\n")
        if first_line.startswith(TLS_HELLO):
            self.foreign = Foreign.TLS
        elif PROXY_V1.match(first_line) or (not self._rest and data.startswith(PROXY_V2)):
            self.foreign = Foreign.PROXY
        elif HTTP_REQUEST.match(first_line):
            self.foreign = Foreign.HTTP
        return data

    def _end_line(self, line: bytes) -> bytes | None:
        if line.endswith(b"\r"):
            line = line[:-1]
        first, self._in_first_line = self._in_first_line, False
        if len(line) > self.max_line_bytes:
            self.starts.append(line[:START_BYTES])
            self.skipped_bytes += len(line)
            return None
        return line.removeprefix(BOM) if first else line

    def _report_overlong(self, lines: list[bytes | None]) -> None:
        excess = len(self._rest) - self.max_line_bytes
        # One byte over the limit may still turn out to be the CR of the line's end.
        if excess > 1 or (excess == 1 and self._rest[-1] != _CR):
            lines.append(None)
            self.starts.append(self.start)
            self.framing = _framing(self._rest)
            self.skipped_bytes += len(self._rest)
            self._rest.clear()
            self.skipping = True
            self._in_first_line = False


def _framing(line: bytes | bytearray) -> Framing:
    head = line[:HEAD_BYTES]
    if b"\0" in head:
        return Framing.NUL
    if _OCTETS.match(head):
        return Framing.OCTETS
    if head.lstrip().startswith(b"["):
        return Framing.ARRAY
    return Framing.NONE
