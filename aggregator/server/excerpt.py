"""The start of what a client has sent, in a form that is safe to log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SHOWN_CHARS: Final = 60
"""Enough to recognize a program: a priority, a date and a host are some 40 characters."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Bytes as the log shows them: printable, in quotes, and cut. They are formatted only if the line is logged."""

    data: bytes

    def __str__(self) -> str:
        text = self.data[: 4 * SHOWN_CHARS].decode(errors="backslashreplace")
        shown = "".join(map(_printable, text[:SHOWN_CHARS]))
        return f'"{shown}{"…" if len(text) > SHOWN_CHARS else ""}"'


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
