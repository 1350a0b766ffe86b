"""Text as a terminal may see it."""

from __future__ import annotations


def printable(text: str) -> str:
    """The same text with ``\\uXXXX`` for each character that is not printable: inside JSON strings it means the same.

    What a file, a client or a server has said must not steer a terminal: no escape sequence, no character that turns
    the direction of what follows. A line feed is not printable either, so this is for one line at a time.
    """
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02X}{units[i + 1]:02X}" for i in range(0, len(units), 2))
