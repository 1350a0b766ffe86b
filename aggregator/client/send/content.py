"""What the first bytes of a file say about it: text, compressed text, or something that has no lines."""

from __future__ import annotations

import re
from typing import Final

HEAD_BYTES: Final = 8192
"""How much of a file is examined. A NUL byte in it means binary content, as for git and grep."""

_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    # The whole magic, because a line of text may begin with its first three bytes.
    **{b"BZh%d%s" % (level, block): "bzip2" for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")},
}

# What such a file is, and how to get its lines. FILE stands for its name.
_REFUSED: Final = {
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "zstd -dc FILE | aggregator send -"),
    b"\x04\x22\x4d\x18": ("compressed with lz4", "lz4 -dc FILE | aggregator send -"),
    b"\x1f\x9d": ("compressed with compress", "uncompress -c FILE | aggregator send -"),
    b"PK\x03\x04": ("a zip archive", "unzip -p FILE | aggregator send -"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x -so FILE | aggregator send -"),
    b"SQLite format 3\0": ("an SQLite database", "sqlite3 FILE 'SELECT …' | aggregator send -"),
    b"LPKSHHRH": ("a journal of systemd", "journalctl --file FILE -o short-iso | aggregator send -"),
    b"\xff\xfe\0\0": ("UTF-32", "iconv -f UTF-32 -t UTF-8 FILE | aggregator send -"),
    b"\0\0\xfe\xff": ("UTF-32", "iconv -f UTF-32 -t UTF-8 FILE | aggregator send -"),
    b"\xff\xfe": ("UTF-16", "iconv -f UTF-16 -t UTF-8 FILE | aggregator send -"),
    b"\xfe\xff": ("UTF-16", "iconv -f UTF-16 -t UTF-8 FILE | aggregator send -"),
}
_TAR: Final = (257, b"ustar", "a tar archive", "tar -xOf FILE | aggregator send -")

_MAGIC: Final = sorted([*_COMPRESSED, *_REFUSED], key=len, reverse=True)

# NULs at the head of a line do not mean binary content: see ``lines``.
_NUL_IN_LINE: Final = re.compile(rb"[^\n\0]\0")


class Refused(Exception):
    """The content has no lines of text; the text says what it is, and what to do."""


def compression(head: bytes) -> str | None:
    """How a file that begins like this is compressed; None for plain text. Raises Refused."""
    found = next((magic for magic in _MAGIC if head.startswith(magic)), b"")
    if found in _COMPRESSED:
        return _COMPRESSED[found]
    if found:
        raise _refused(*_REFUSED[found])
    at, magic, what, cure = _TAR
    if head.startswith(magic, at):
        raise _refused(what, cure)
    if nul := _NUL_IN_LINE.search(head):
        raise Refused(f"not sent, because it is binary (a NUL at byte {nul.start() + 2}); --text sends it anyway")
    return None


def check_text(head: bytes) -> None:
    """Check that unpacked content is text. Raises Refused."""
    if kind := compression(head):
        raise Refused(f"not sent, because it is compressed twice: its content is compressed with {kind}")


def may_become_known(head: bytes) -> bool:
    """Whether more bytes may tell what these few bytes do not."""
    return any(magic.startswith(head) and magic != head for magic in _MAGIC)


def _refused(what: str, cure: str) -> Refused:
    return Refused(f"not sent, because it is {what}: {cure}  (--text sends it anyway)")
