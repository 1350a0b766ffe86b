"""How the texts of a stream are set apart, told from its first bytes; and what holds no texts at all.

The framing is decided by as few bytes as decide it, and by these alone: how the stream was cut into reads makes no
difference. At most one text of the greatest length is looked at; a stream that has shown nothing by then is lines.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from aggregator.wire.lines import HEAD_BYTES, PROXY_V1, PROXY_V2, TLS_HELLO
from aggregator.wrap.scan import Broken, ObjectScanner

CONTINUED_BYTES: Final = 64 * 1024
"""How much of a syslog message may follow its first line until it is clear that NUL ends it: a long traceback."""


class Framing(Enum):
    """What ends a text, with its name for the log."""

    LINES = "line feeds"
    NUL = "NUL bytes"
    LOG4JS = "__LOG4JS__"
    OCTETS = "counted octets (RFC 6587)"
    OBJECTS = "JSON objects, one behind the other"
    ARRAY = "one JSON array"


class Foreign(Enum):
    """What is no text, with its name for the log, and what to do about it."""

    TLS = "TLS: switch it off in the client, or put a proxy in front that ends it"
    HTTP = "HTTP: choose the client's output for plain TCP"
    PROXY = "the PROXY protocol: switch it off"
    PICKLE = "pickles, as Python's SocketHandler does: use SysLogHandler, or override makePickle() with a line of JSON"
    MSGPACK = "msgpack, as Forward does: choose json_lines as the format, or send it to the Forward port"
    GZIP = "gzip: switch compression off"


_MAGIC: Final = (
    (Foreign.TLS, TLS_HELLO),
    (Foreign.GZIP, b"\x1f\x8b"),  # RFC 1952, section 2.3.1
    (Foreign.PROXY, PROXY_V2),
)
# SocketHandler's length in 4 bytes, then a dict as its protocol 1 begins, or a later protocol's number (PEP 307).
_PICKLE: Final = re.compile(rb"\0[\0-\xff]{3}(?:\}q|\x80[\x02-\x05])")
# An array of two to four, whose first is a tag, a time or another array (msgpack's spec.md, "Formats"). No text begins
# so: these bytes only continue a character of UTF-8.
_MSGPACK: Final = re.compile(rb"[\x92-\x94][\x92\xa0-\xbf\xd6-\xd9\xda\xcb-\xcf]")
_HTTP: Final = re.compile(rb"(?:[A-Z]{3,7} \S+|PRI \*) HTTP/[12]\.\d\r?")  # TRACE alone is a level in front of a text
_OCTETS: Final = re.compile(rb"[1-9][0-9]{0,8} (?:<[0-9]{1,3}>|\{)")  # RFC 6587, section 3.4.1
_OCTETS_SO_FAR: Final = re.compile(rb"[1-9][0-9]{0,8}(?: (?:<[0-9]{0,3})?)?")
_PRIORITY: Final = re.compile(rb"<[0-9]{1,3}>")
# White space is looked at anew with each read, so there is an end to it.
_JSON: Final = re.compile(rb"(\[?)[ \t\r\n]{0,256}\{")
_JSON_SO_FAR: Final = re.compile(rb"\[[ \t\r\n]{0,256}")
_BLANKS: Final = re.compile(rb"[ \t]{0,256}")
_SPACE: Final = re.compile(rb"[ \t\r\n]{0,256}")
_END: Final = re.compile(rb"\n|\0|__LOG4JS__")
_END_OF_SYSLOG: Final = re.compile(rb"\n<|\0|__LOG4JS__")
_LOG4JS: Final = b"__LOG4JS__"
_FRAMINGS: Final = {b"\n": Framing.LINES, b"\n<": Framing.LINES, b"\0": Framing.NUL, _LOG4JS: Framing.LOG4JS}


class Recognition:
    """Looks at the start of one stream until it is clear what it is."""

    def __init__(self, limit: int) -> None:
        self.likely: Framing | None = None
        """What it is if nothing follows: a whole text is there."""
        self._limit = limit
        self._searched = 0
        self._line_end = -1  # of the first line
        self._scanner: ObjectScanner | None = None
        self._is_json = True
        self._object_end: int | None = None

    def look(self, head: bytes | bytearray, ended: bool = False) -> Framing | Foreign | None:
        """What a stream is that begins so; None if more bytes are needed. ``ended``: no more will come."""
        window = head if len(head) <= self._limit else head[: self._limit]
        ended = ended or len(head) >= self._limit
        if not window:
            return None
        self.likely = None
        found = self._binary(window, ended)
        if found is None:
            found = self._framing(window, ended) or (Framing.LINES if ended else None)
        if isinstance(found, Framing):
            first_line = _END.split(window[:HEAD_BYTES], maxsplit=1)[0]  # what has decided, and nothing behind it
            if _HTTP.fullmatch(first_line):
                return Foreign.HTTP
            if PROXY_V1.match(first_line):
                return Foreign.PROXY
        return None if found is _UNDECIDED else found  # type: ignore[return-value]

    def _binary(self, head: bytes | bytearray, ended: bool) -> Foreign | object | None:
        for foreign, magic in _MAGIC:
            if head.startswith(magic):
                return foreign
            if magic.startswith(head) and not ended:
                return _UNDECIDED
        for foreign, pattern, first, size in (
            (Foreign.PICKLE, _PICKLE, b"\0", 6),
            (Foreign.MSGPACK, _MSGPACK, b"\x92\x93\x94", 2),
        ):
            if head[0] in first:
                if pattern.match(head):
                    return foreign
                if len(head) < size and not ended:
                    return _UNDECIDED
        return None

    def _framing(self, head: bytes | bytearray, ended: bool) -> Framing | None:
        if _OCTETS.match(head):
            return Framing.OCTETS
        if not ended and _OCTETS_SO_FAR.fullmatch(head):
            return None
        if self._is_json and (start := _JSON.match(head)):
            return self._of_objects(head, start, ended)
        if self._is_json and not ended and _JSON_SO_FAR.fullmatch(head):
            return None
        return self._of_texts(head)

    def _of_texts(self, head: bytes | bytearray) -> Framing | None:
        """The first end of a text counts. A syslog message may have lines, and only what follows a line says so."""
        may_continue = _PRIORITY.match(head) is not None
        match = (_END_OF_SYSLOG if may_continue else _END).search(head, self._searched)
        if may_continue:
            if self._line_end < 0:
                self._line_end = head.find(b"\n", self._searched)
            if self._line_end >= 0:
                self.likely = Framing.LINES
                latest = self._line_end + CONTINUED_BYTES
                if len(head) > latest and (match is None or match.start() >= latest):
                    return Framing.LINES
        if match:
            begins_with_nul = match.end() == 1 and match[0] == b"\0"  # as a file after a power cut; no text does
            return Framing.LINES if begins_with_nul else _FRAMINGS[match[0]]
        self._searched = max(self._searched, len(head) - len(_LOG4JS) + 1)
        return None

    def _of_objects(self, head: bytes | bytearray, start: re.Match[bytes], ended: bool) -> Framing | None:
        """What follows the first object counts, unless there is an end of a text in it."""
        if self._object_end is None:
            scanner = self._scanner = self._scanner or ObjectScanner(start.end() - 1)
            line_end = head.find(b"\n", max(self._searched, start.end()))
            self._searched = len(head) if line_end < 0 else line_end
            try:
                end = scanner.find_end(head)
            except Broken:
                end = None
            if line_end >= 0 and (end is None or line_end < end):
                return self._terminated(head)
            if end is None:
                return None
            self._object_end = end
        end = self._object_end
        return self._behind_element(head, end, ended) if start[1] else self._behind_object(head, end, ended)

    def _behind_object(self, head: bytes | bytearray, end: int, ended: bool) -> Framing | None:
        at = _skip(_BLANKS, head, end)
        if at == len(head):
            self.likely = Framing.OBJECTS
            return Framing.OBJECTS if ended else None
        if head[at] == b"{"[0]:
            return Framing.OBJECTS
        return self._terminated(head)

    def _behind_element(self, head: bytes | bytearray, end: int, ended: bool) -> Framing | None:
        at = _skip(_SPACE, head, end)
        if at < len(head) and head[at] == b","[0]:
            at = _skip(_SPACE, head, at + 1)
            if at == len(head):
                return None
            return Framing.ARRAY if head[at] == b"{"[0] else self._terminated(head)
        if at < len(head) and head[at] == b"]"[0]:
            at = _skip(_BLANKS, head, at + 1)
            if at < len(head):
                return Framing.ARRAY if head[at] in b"[{" else self._terminated(head)
        if at == len(head):
            self.likely = Framing.ARRAY
            return Framing.ARRAY if ended else None
        return self._terminated(head)

    def _terminated(self, head: bytes | bytearray) -> Framing | None:
        self._is_json = False
        self._searched = 0
        return self._of_texts(head)


_UNDECIDED: Final = object()


def _skip(pattern: re.Pattern[bytes], head: bytes | bytearray, at: int) -> int:
    match = pattern.match(head, at)
    assert match is not None
    return match.end()
