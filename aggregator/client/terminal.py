"""Text that is safe to show on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with ``\\uXXXX`` for each character that is not printable; inside JSON strings this means the same.

    Text from a file, a client or a server must not control a terminal: it must have no escape sequence, and no
    character that turns the direction of what follows. A line feed is not printable either, so this is for one line at
    a time.
    """
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02X}{units[i + 1]:02X}" for i in range(0, len(units), 2))
