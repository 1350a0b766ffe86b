"""Bytes to texts, however the texts are separated. Nothing is dropped except what separates them.

A text that is longer than allowed is returned in parts, each with its offset in the text.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from aggregator.wire.lines import BOM
from aggregator.wrap.recognition import Foreign, Framing, Recognition
from aggregator.wrap.scan import Broken, ObjectScanner

SHOWN_BYTES: Final = 100
"""How much of a stream is kept for the log."""

_LFS: Final = re.compile(rb"\n*")
_LENGTH: Final = re.compile(rb"([1-9][0-9]{0,8}) ")
_LENGTH_SO_FAR: Final = re.compile(rb"(?:[1-9][0-9]{0,8})?")
_BETWEEN: Final = re.compile(rb"[ \t\r\n,\[\]]*")
_CR: Final = b"\r"[0]
_OPEN_BRACE: Final = b"{"[0]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a text that is too long, or that did not end in time."""

    content: bytes
    offset: int
    """Where the part begins in its text, in bytes."""
    more: bool
    """Whether the text goes on."""


Text = bytes | Part


class Framer:
    """Cuts one stream of bytes into texts, whatever the pieces it arrives in. At most one text is buffered."""

    framing: Framing | None = None
    """How the texts are separated; None until that is clear. The rest of a stream that breaks its framing is lines."""
    foreign: Foreign | None = None
    """Set once the stream turns out not to be text. Nothing is returned from then on."""

    def __init__(self, max_text_bytes: int) -> None:
        self._limit = max_text_bytes
        self._recognition = Recognition(max_text_bytes)
        self._head = bytearray()
        self._may_have_bom = True
        self._cutter: _Cutter | None = None

    @property
    def unfinished(self) -> bool:
        """Whether a text has begun and not ended yet."""
        if self._cutter:
            return bool(self._cutter.rest or self._cutter.offset)
        return bool(self._head) and not self.foreign

    @property
    def start(self) -> bytes:
        """The first bytes of the unfinished text, or of a foreign stream."""
        return bytes((self._cutter.rest if self._cutter else self._head)[:SHOWN_BYTES])

    def feed(self, data: bytes) -> list[Text]:
        """Take the next bytes; return the texts that they complete."""
        if self._cutter:
            return self._cut(data)
        if self.foreign:
            return []
        self._head += data
        return self._decide(ended=False)

    def settle(self) -> list[Text]:
        """Take the likely framing, if a whole text is there. To be called when nothing has arrived for a while."""
        if self._cutter or self.foreign or not (likely := self._recognition.likely):
            return []
        return self._begin(likely)

    def flush(self) -> list[Text]:
        """Return the buffered bytes of the unfinished text as a part of it."""
        texts = self._decide(ended=True)
        if self._cutter and self._cutter.rest:
            self._cutter.flush(texts)
        return texts

    def finish(self) -> list[Text]:
        """Take the end of the stream: the unfinished rest is a text too."""
        texts = self._decide(ended=True)
        return texts + self._cutter.finish() if self._cutter else texts

    def _decide(self, ended: bool) -> list[Text]:
        if self._cutter or self.foreign:
            return []
        if self._may_have_bom:
            if BOM.startswith(self._head) and not ended:  # also true of an empty head
                return []
            self._may_have_bom = False
            if self._head.startswith(BOM):
                del self._head[: len(BOM)]
        found = self._recognition.look(self._head, ended)
        if isinstance(found, Foreign):
            self.foreign = found
            del self._head[SHOWN_BYTES:]
        return self._begin(found) if isinstance(found, Framing) else []

    def _begin(self, framing: Framing) -> list[Text]:
        self.framing = framing
        self._cutter = _CUTTERS[framing](self._limit)
        head = bytes(self._head)
        self._head.clear()
        return self._cut(head)

    def _cut(self, data: bytes) -> list[Text]:
        assert self._cutter
        texts = self._cutter.feed(data)
        if self._cutter.lost:  # lines accept any bytes
            self.framing = Framing.LINES
            lines = _Lines(self._limit)
            lines.offset = self._cutter.offset
            texts += lines.feed(bytes(self._cutter.rest))
            self._cutter = lines
        return texts


class _Cutter(ABC):
    """Cuts a stream by one framing."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rest = bytearray()
        self.offset = 0
        """How many bytes of the text in front were already returned in parts."""
        self.lost = False
        """Whether the stream has broken the framing; then ``rest`` begins with the text that breaks it."""

    @abstractmethod
    def feed(self, data: bytes) -> list[Text]:
        """Take the next bytes; return the texts that they complete."""

    def finish(self) -> list[Text]:
        """Take the end of the stream."""
        texts: list[Text] = []
        if self.rest or self.offset:
            self.end(len(self.rest), texts)
        return texts

    def flush(self, texts: list[Text]) -> None:
        """Remove all of ``rest`` and add it to ``texts``, as a part of its text."""
        texts.append(self.part(len(self.rest), more=True))

    def part(self, size: int, more: bool) -> Part:
        """Remove a part from the front of ``rest``, and return it."""
        made = Part(bytes(self.rest[:size]), self.offset, more)
        del self.rest[:size]
        self.offset = self.offset + size if more else 0
        return made

    def shed(self, size: int, texts: list[Text], spare: int = 0) -> int:
        """Remove parts from the front of a text of ``size`` bytes while it exceeds the limit; return the size left.

        The last ``spare`` bytes may turn out not to belong to the text.
        """
        while size > self.limit + spare:
            at = _character_boundary(self.rest, self.limit)
            texts.append(self.part(at, more=True))
            size -= at
        return size

    def end(self, size: int, texts: list[Text]) -> None:
        """End the text in front after ``size`` bytes of ``rest``."""
        size = self.shed(size, texts)
        if self.offset:
            texts.append(self.part(size, more=False))
        else:
            texts.append(bytes(self.rest[:size]))
            del self.rest[:size]


class _Terminated(_Cutter):
    """Texts that all end with the same terminator."""

    terminator: bytes

    def feed(self, data: bytes) -> list[Text]:
        texts: list[Text] = []
        if len(self.terminator) > 1 and self.rest:  # the terminator may have begun in the rest
            overlap = min(len(self.rest), len(self.terminator) - 1)
            data = bytes(self.rest[-overlap:]) + data
            del self.rest[-overlap:]
        head, *others = data.split(self.terminator)
        if others:
            last = others.pop()
            self._end_text(head, texts)
            if _CR not in data and (len(data) <= self.limit or max(map(len, others), default=0) <= self.limit):
                texts += others  # nothing to cut off, nothing too long: the common case
            else:
                for one in others:
                    self._end_text(one, texts)
            head = last
        self.rest += head
        self.shed(len(self.rest), texts, spare=len(self.terminator))
        return texts

    def _end_text(self, end: bytes, texts: list[Text]) -> None:
        self.rest += end
        self.end(len(self.rest), texts)


class _Lines(_Terminated):
    terminator = b"\n"

    def end(self, size: int, texts: list[Text]) -> None:
        if size and self.rest[size - 1] == _CR:
            del self.rest[size - 1]
            size -= 1
        super().end(size, texts)


class _Nul(_Terminated):
    terminator = b"\0"


class _Log4js(_Terminated):
    terminator = b"__LOG4JS__"


class _Octets(_Cutter):
    """RFC 6587, section 3.4.1: each text follows its length. Line feeds after a text are skipped."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._left: int | None = None  # how many bytes of the text in front were not returned yet

    def feed(self, data: bytes) -> list[Text]:
        texts: list[Text] = []
        self.rest += data
        while self.rest:
            if self._left is None:
                del self.rest[: _LFS.match(self.rest).end()]  # type: ignore[union-attr]
                if not (length := _LENGTH.match(self.rest)):
                    self.lost = _LENGTH_SO_FAR.fullmatch(self.rest) is None
                    break
                self._left = int(length[1])
                del self.rest[: length.end()]
            elif len(self.rest) >= self._left:
                size, self._left = self._left, None
                self.end(size, texts)
            else:
                self._left -= len(self.rest) - self.shed(len(self.rest), texts)
                break
        return texts

    def flush(self, texts: list[Text]) -> None:
        if self._left is not None:
            self._left -= len(self.rest)
            super().flush(texts)


class _Objects(_Cutter):
    """JSON objects, separated by blanks, line feeds, and the commas and brackets of an array."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._scanner: ObjectScanner | None = None

    def feed(self, data: bytes) -> list[Text]:
        texts: list[Text] = []
        self.rest += data
        try:
            while self._next(texts):
                pass
        except Broken:
            self.lost = True
            if self._scanner:
                self.shed(self._scanner.position, texts)
        return texts

    def flush(self, texts: list[Text]) -> None:
        assert self._scanner  # without a scanner there is no rest
        self._scanner.position -= len(self.rest)
        super().flush(texts)

    def _next(self, texts: list[Text]) -> bool:
        """Take the object in front; return whether it has ended."""
        if self._scanner is None:
            between = _BETWEEN.match(self.rest)
            assert between is not None
            del self.rest[: between.end()]
            if not self.rest:
                return False
            if self.rest[0] != _OPEN_BRACE:
                raise Broken
            self._scanner = ObjectScanner()
        end = self._scanner.find_end(self.rest)
        if end is None:
            size = len(self.rest)
            self._scanner.position -= size - self.shed(size, texts)
            return False
        self._scanner = None
        self.end(end, texts)
        return True


_CUTTERS: Final[dict[Framing, type[_Cutter]]] = {
    Framing.LINES: _Lines,
    Framing.NUL: _Nul,
    Framing.LOG4JS: _Log4js,
    Framing.OCTETS: _Octets,
    Framing.OBJECTS: _Objects,
    Framing.ARRAY: _Objects,
}


def _character_boundary(text: bytearray, limit: int) -> int:
    """Where to cut a text longer than ``limit``: there, or up to 3 bytes earlier to keep a UTF-8 character whole."""
    for at in range(limit, max(limit - 4, 0), -1):
        if text[at] & 0xC0 != 0x80:
            return at
    return limit
