r"""The wire protocol, without any input or output: bytes in, lines out; a line in, what it means out; reply encoding.

The grammar (README.md, "Protocol", is the same for client authors, with every reply literal)::

    stream   = [BOM] *( line LF ) [ line ]         the unterminated rest counts at an orderly end of the stream
    line     = content [CR]                        UTF-8; content at most max_line_bytes long; empty: skipped
    content  = "{" event or batch                  a JSON object; a batch has "events" and no "topic"
             | "[" batch                           a JSON array of events
             | letter command                      one word in any case, then arguments quoted as in a shell
             | anything else                       rejected, code bad_line

Each complete non-empty line is answered by one reply line, in order. A line longer than max_line_bytes is answered
once (code too_long) and skipped up to its LF: its tail is never taken for a line. A first line that looks like an
HTTP request, or a TLS ClientHello, belongs to another protocol: nothing that follows it is read as lines.

This module knows neither sockets nor the database; it imports neither asyncio nor sqlite3.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from aggregator import event
from aggregator.event import Event, Events, InvalidEvent

BOM: Final = b"\xef\xbb\xbf"

MAX_COMMAND_BYTES: Final = 4096
"""Room for a topic and an event_id of 255 four-byte characters each, quoted. shlex reads character by character in
Python: without this bound one letter and a mebibyte would stall every client for a second."""

# How much of a first line is looked at to tell HTTP and TLS apart: the request line that common servers accept.
_HEAD_BYTES = 8192

_CR, _OPEN_BRACE, _OPEN_BRACKET = b"\r{["

# A request line, or what is enough to know one that is cut short by a limit. A web page can make a browser send only
# GET, HEAD and POST unasked; the second form covers every other HTTP client. An event may well hold such a text.
_HTTP = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE|CONNECT|PRI) |[A-Za-z][!-~]* [!-~]+ HTTP/[0-9]")
HTTP_REPLY: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 66\r\nConnection: close\r\n\r\n"
    b"This port takes newline-delimited JSON over plain TCP, not HTTP.\r\n"
)

# RFC 8446, section 5.1: a handshake record starts with type 22 and the legacy version's high byte, 3.
TLS_HELLO: Final = b"\x16\x03"
TLS_REPLY: Final = b"\x15\x03\x01\x00\x02\x02\x46"
"""A fatal protocol_version alert (RFC 8446, section 6): TLS clients print it instead of waiting."""


_ACK_QUOTES: Final = 14  # in a stored or duplicate reply whose names hold none

Reply = dict[str, Any]
"""A reply before it is encoded; ``status`` comes first."""


@dataclass(slots=True)
class Command:
    """An admin command: its word in upper case, and its arguments as the shell would split them."""

    word: str
    arguments: list[str]


@dataclass(slots=True)
class Rejection:
    """Why an event or a line is certainly not stored. ``code`` is stable, ``detail`` is for people."""

    code: str
    detail: str
    topic: str | None = None
    event_id: str | None = None


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


def parse(line: bytes) -> Event | list[Event | Rejection] | Command | Rejection:
    """Say what a non-empty line is: an event, a batch (its members judged one by one), a command or a rejection."""
    first = line[0]
    try:
        if first in (_OPEN_BRACE, _OPEN_BRACKET):
            found = event.parse(line)
            if type(found) is list:
                return [_rejection(one) if isinstance(one, InvalidEvent) else one for one in found]
            return found  # type: ignore[return-value]
        if line[:1].isalpha():
            return _parse_command(line)
    except InvalidEvent as invalid:
        return _rejection(invalid)
    return Rejection("bad_line", f"expected {{, [ or a command, got {_show(line)}")


def _rejection(invalid: InvalidEvent) -> Rejection:
    return Rejection(invalid.code, invalid.detail, invalid.topic, invalid.event_id)


def _parse_command(line: bytes) -> Command | Rejection:
    if len(line) > MAX_COMMAND_BYTES:
        return Rejection("bad_command", f"a command has at most {MAX_COMMAND_BYTES} bytes, this one {len(line)}")
    try:
        word, *arguments = shlex.split(line.decode())
    except UnicodeDecodeError as error:
        return Rejection("bad_command", f"not valid UTF-8 at byte {error.start + 1}")
    except ValueError as error:  # shlex: an open quote, a lone backslash
        return Rejection("bad_command", f"{str(error).lower()}: quote arguments as in a shell")
    return Command(word.upper(), arguments)


def _show(line: bytes) -> str:
    character = line[:4].decode(errors="replace")[0]
    return repr(character) if character.isprintable() and character != "\ufffd" else f"byte 0x{line[0]:02X}"


def too_long(max_line_bytes: int) -> Rejection:
    """The rejection of an over-long line."""
    return Rejection("too_long", f"longer than {max_line_bytes} bytes; skipped to the end of the line")


def stored(event: Event, seq: int) -> Reply:
    """The ack of an event that was stored now."""
    return {"status": "stored", "seq": seq, "topic": event.topic, "event_id": event.event_id}


def duplicate(event: Event, seq: int) -> Reply:
    """The ack of an event whose key was stored before, with the ``seq`` it has."""
    return {"status": "duplicate", "seq": seq, "topic": event.topic, "event_id": event.event_id}


def encode_acks(events: Events, first_seq: int, duplicates: Mapping[int, int], offset: int) -> bytes:
    """The encoded ``stored`` and ``duplicate`` replies to events that were committed together.

    Event ``i`` has the seq ``first_seq + i``, unless ``duplicates`` has another one for ``offset + i``.
    """
    older_seq = duplicates.get
    text = "".join(
        [
            f'{{"status":"stored","seq":{first_seq + i},"topic":"{topic}","event_id":"{event_id}"}}\n'
            if (seq := older_seq(offset + i)) is None
            else f'{{"status":"duplicate","seq":{seq},"topic":"{topic}","event_id":"{event_id}"}}\n'
            for i, (topic, event_id) in enumerate(zip(events.topics, events.event_ids, strict=True))
        ]
    )
    # Names hold no control characters, so that only these two would have to be escaped.
    if text.count('"') == _ACK_QUOTES * len(events) and "\\" not in text:
        return text.encode()
    replies = []
    for i, one in enumerate(events):
        seq = older_seq(offset + i)
        replies.append(encode(stored(one, first_seq + i) if seq is None else duplicate(one, seq)))
    return b"".join(replies)


def rejected(rejection: Rejection, line: int) -> Reply:
    """Certainly not stored; ``line`` is the 1-based number of the line on its connection."""
    reply = {"status": "rejected", "code": rejection.code, "detail": rejection.detail, "line": line}
    if rejection.topic is not None:
        reply["topic"] = rejection.topic
    if rejection.event_id is not None:
        reply["event_id"] = rejection.event_id
    return reply


def error(code: str, detail: str, event: Event | None = None) -> Reply:
    """Unknown whether stored: send it again with the same id."""
    reply = {"status": "error", "code": code, "detail": detail}
    if event is not None:
        reply |= {"topic": event.topic, "event_id": event.event_id}
    return reply


def batch(results: list[Reply]) -> Reply:
    """The one reply to a batch line, from the replies to its events, in order."""
    counts = Counter(result["status"] for result in results)
    summary = {status: counts[status] for status in ("stored", "duplicate", "rejected", "error")}
    return {"status": "batch", **summary, "results": results}


def ok(answer: Reply) -> Reply:
    """A command's answer. Ready-made JSON may stand in it as ``orjson.Fragment``."""
    return {"status": "ok", **answer}


def encode(reply: Reply) -> bytes:
    """A reply as it goes over the wire: one line."""
    return orjson.dumps(reply, option=orjson.OPT_APPEND_NEWLINE)
