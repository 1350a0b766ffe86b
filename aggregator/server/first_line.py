"""The first line of a client, as far as it may say who the client is: ``AUTH <token>``, or anything else.

Nothing is read as lines before. What a stranger sends is kept up to FIRST_LINE_BYTES, and looked at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from aggregator.wire.lines import BOM

FIRST_LINE_BYTES: Final = 1024
"""Most that is kept of somebody who is not known. A token and its word have 61 bytes."""

_WORD: Final = b"AUTH"
_TOKEN_LINE: Final = re.compile(rb"AUTH agg_[a-z2-7]{52}\r?")


@dataclass(frozen=True, slots=True)
class Said:
    """What the first line has said."""

    rest: bytes
    """What is to be read as lines."""
    token: str | None = None
    """What stood behind AUTH; None: it was no AUTH."""
    lines: int = 0
    """Lines of the connection that ``rest`` begins behind."""


class FirstLine:
    """Waits for the first line that is not empty.

    ``text``: the stream may hold any text. Then a line is an AUTH only if it has a token and nothing else.
    """

    def __init__(self, text: bool) -> None:
        self._is_text = text
        self._held = bytearray()

    def feed(self, data: bytes) -> Said | None:
        """Take the next bytes; None: it takes more of them to tell."""
        self._held += data
        looked_at = bytes(self._held[: FIRST_LINE_BYTES + 1])
        is_all = len(looked_at) == len(self._held) <= FIRST_LINE_BYTES
        if is_all and BOM.startswith(looked_at):
            return None
        start = _start(looked_at)
        head = looked_at[start : start + len(_WORD) + 1]
        if head[: len(_WORD)].upper() != _WORD[: len(head)]:
            return self._no_auth()
        if len(head) > len(_WORD) and head[len(_WORD) :] not in (b" ", b"\t", b"\r", b"\n"):
            return self._no_auth()
        if (end := looked_at.find(b"\n", start)) >= 0:
            return self._auth(start, end)
        if is_all:
            return None
        return self._no_auth() if len(head) <= len(_WORD) else self._auth(start, len(looked_at))

    def finish(self) -> Said:
        """Take the end of the stream: an unterminated line counts."""
        start = _start(self._held)
        if self._held[start:].upper().split(maxsplit=1)[:1] != [_WORD]:
            return self._no_auth()
        return self._auth(start, len(self._held))

    def _no_auth(self) -> Said:
        return Said(bytes(self._held))

    def _auth(self, start: int, end: int) -> Said:
        line = bytes(self._held[start:end])
        if self._is_text and not _TOKEN_LINE.fullmatch(line):
            return self._no_auth()
        token = line[len(_WORD) :].strip(b" \t\r")
        rest = bytes(self._held[end + 1 :])
        return Said(rest, token.decode(errors="replace"), 1 + self._held.count(b"\n", 0, start))


def _start(held: bytes | bytearray) -> int:
    """Where the first line that is not empty begins."""
    return len(held) - len(held.removeprefix(BOM).lstrip(b" \t\r\n"))
