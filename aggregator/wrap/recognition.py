"""How the texts of a stream are separated, recognized from its first bytes; and which streams hold no texts at all.

The framing is decided by as few bytes as possible, and by these bytes alone: how the stream is cut into reads makes no
difference. At most as many bytes as the longest text may have are examined; a stream still undecided then is lines.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from aggregator.wire.lines import HEAD_BYTES, PROXY_V1, PROXY_V2, TLS_HELLO
from aggregator.wrap.scan import Broken, ObjectScanner

CONTINUED_BYTES: Final = 64 * 1024
"""How many bytes of a syslog message that ends with NUL may follow its first line: a long traceback. If no NUL comes
within them, the stream is lines."""


class Framing(Enum):
    """What ends a text, with its name for the log."""

    LINES = "line feeds"
    NUL = "NUL bytes"
    LOG4JS = "__LOG4JS__"
    OCTETS = "counted octets (RFC 6587)"
    OBJECTS = "JSON objects, one after another"
    ARRAY = "one JSON array"


class Foreign(Enum):
    """A stream that is not text, with its name for the log, and what to do about it."""

    TLS = "TLS: switch it off in the client, or put a proxy in front that terminates it"
    HTTP = "HTTP: choose the client's output for plain TCP"
    PROXY = "the PROXY protocol: switch it off"
    PICKLE = (
        "pickles, as Python's SocketHandler sends them: use SysLogHandler, or override makePickle() with a line of JSON"
    )
    MSGPACK = "msgpack, as Forward sends it: choose json_lines as the format, or send it to the Forward port"
    GZIP = "gzip: switch compression off"


_MAGIC: Final = (
    (Foreign.TLS, TLS_HELLO),
    (Foreign.GZIP, b"\x1f\x8b"),  # RFC 1952, section 2.3.1
    (Foreign.PROXY, PROXY_V2),
)
# SocketHandler's length in 4 bytes, then the start of a dict in protocol 1, or a later protocol's number (PEP 307).
_PICKLE: Final = re.compile(rb"\0[\0-\xff]{3}(?:\}q|\x80[\x02-\x05])")
# An array of two to four values, of which the first is a tag, a time or another array (msgpack's spec.md, "Formats").
# No text begins with such a byte: in UTF-8 it only continues a character.
_MSGPACK: Final = re.compile(rb"[\x92-\x94][\x92\xa0-\xbf\xd6-\xd9\xda\xcb-\xcf]")
_HTTP: Final = re.compile(rb"(?:[A-Z]{3,7} \S+|PRI \*) HTTP/[12]\.\d\r?")  # TRACE alone is a level in front of a text
_OCTETS: Final = re.compile(rb"[1-9][0-9]{0,8} (?:<[0-9]{1,3}>|\{)")  # RFC 6587, section 3.4.1
_OCTETS_SO_FAR: Final = re.compile(rb"[1-9][0-9]{0,8}(?: (?:<[0-9]{0,3})?)?")
_PRIORITY: Final = re.compile(rb"<[0-9]{1,3}>")
# White space is examined again with each read, so its length is limited.
_JSON: Final = re.compile(rb"(\[?)[ \t\r\n]{0,256}\{")
_JSON_SO_FAR: Final = re.compile(rb"\[[ \t\r\n]{0,256}")
_BLANKS: Final = re.compile(rb"[ \t]{0,256}")
_SPACE: Final = re.compile(rb"[ \t\r\n]{0,256}")
_END: Final = re.compile(rb"\n|\0|__LOG4JS__")
_END_OF_SYSLOG: Final = re.compile(rb"\n<|\0|__LOG4JS__")
_LOG4JS: Final = b"__LOG4JS__"
_FRAMINGS: Final = {b"\n": Framing.LINES, b"\n<": Framing.LINES, b"\0": Framing.NUL, _LOG4JS: Framing.LOG4JS}


class Recognition:
    """Examines the start of one stream until it is clear what the stream is."""

    def __init__(self, limit: int) -> None:
        self.likely: Framing | None = None
        """The framing if nothing follows; set while a whole text is there."""
        self._limit = limit
        self._searched = 0
        self._line_end = -1  # the index of the end of the first line
        self._scanner: ObjectScanner | None = None
        self._is_json = True
        self._object_end: int | None = None

    def look(self, head: bytes | bytearray, ended: bool = False) -> Framing | Foreign | None:
        """What a stream that begins with ``head`` is; None if more bytes are needed. ``ended``: no more will come."""
        window = head if len(head) <= self._limit else head[: self._limit]
        ended = ended or len(head) >= self._limit
        if not window:
            return None
        self.likely = None
        found = self._binary(window, ended)
        if found is None:
            found = self._framing(window, ended) or (Framing.LINES if ended else None)
        if isinstance(found, Framing):
            first_line = _END.split(window[:HEAD_BYTES], maxsplit=1)[0]  # the bytes that decided, and none after them
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
        """The first terminator decides. A syslog message may have several lines; only the bytes after a line tell."""
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
            begins_with_nul = match.end() == 1 and match[0] == b"\0"  # as a file after a power cut may; no text does
            return Framing.LINES if begins_with_nul else _FRAMINGS[match[0]]
        self._searched = max(self._searched, len(head) - len(_LOG4JS) + 1)
        return None

    def _of_objects(self, head: bytes | bytearray, start: re.Match[bytes], ended: bool) -> Framing | None:
        """The bytes after the first object decide, unless the object contains a line feed."""
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
