"""The first line of a client, which may say who the client is: ``AUTH <token>``, or anything else.

Nothing is read as lines before that is clear. It is clear at the latest when more than FIRST_LINE_BYTES have come.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from aggregator.wire.lines import BOM

FIRST_LINE_BYTES: Final = 1024
"""How much of the first line is looked at. AUTH and a token take 61 bytes."""

_WORD: Final = b"AUTH"
_AUTH: Final = re.compile(rb"AUTH[ \t\r\n]", re.IGNORECASE)
_WITH_TOKEN: Final = re.compile(rb"(?i:AUTH)[ \t]+agg_[a-z2-7]{52}")


@dataclass(frozen=True, slots=True)
class Said:
    """What the first line has said."""

    rest: bytes
    """The bytes to be read as lines."""
    token: str | None = None
    """The text after AUTH; None: the line was not AUTH."""
    lines: int = 0
    """The number of lines of the connection before ``rest``."""


class FirstLine:
    """Waits for the first line that is not empty.

    ``text`` means that the stream may hold any text. Then a line is AUTH only if a token follows the word: no text has
    that by chance, and a token must not be stored.
    """

    def __init__(self, text: bool) -> None:
        self._is_text = text
        self._held = bytearray()

    @property
    def has_some(self) -> bool:
        """Whether something has been received, and is held."""
        return bool(self._held)

    def feed(self, data: bytes) -> Said | None:
        """Take the next bytes; None: it takes more bytes to tell."""
        self._held += data
        head = bytes(self._held[:FIRST_LINE_BYTES])
        line = _without_blanks(head)
        is_full = len(self._held) > FIRST_LINE_BYTES
        if _AUTH.match(line):
            return self._said(line, len(head)) if is_full or b"\n" in line else None
        may_become_auth = BOM.startswith(head) or _WORD.startswith(line.upper())
        return None if may_become_auth and not is_full else Said(bytes(self._held))

    def finish(self) -> Said:
        """Take the end of the stream: an unterminated line counts."""
        line = _without_blanks(bytes(self._held))
        return self._said(line, len(self._held)) if _AUTH.match(line + b"\n") else Said(bytes(self._held))

    def _said(self, line: bytes, end: int) -> Said:
        """What a line with AUTH says. ``line`` ends at ``end`` in what is held, and may contain further lines."""
        if self._is_text and not _WITH_TOKEN.match(line):
            return Said(bytes(self._held))
        start = end - len(line)
        line = line.partition(b"\n")[0]
        token = line[len(_WORD) :].strip(b" \t\r").decode(errors="replace")
        return Said(bytes(self._held[start + len(line) + 1 :]), token, 1 + self._held.count(b"\n", 0, start))


def _without_blanks(head: bytes) -> bytes:
    """The bytes from the first line on that is not empty."""
    return head.removeprefix(BOM).lstrip(b" \t\r\n")
