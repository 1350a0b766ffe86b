"""Files, pipes and standard input as lines that know where they stand: read to the end, or followed like `tail -F`.

Memory is bounded by one chunk and one line, however large the files are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, NamedTuple

from aggregator.wire.lines import BOM

CHUNK_BYTES: Final = 256 << 10
"""Read at a time: enough that a system call costs nothing per line, little enough that signals are noticed."""

MAX_LINE_BYTES: Final = 64 << 20
"""A longer line is skipped instead of loaded: far above what any server is set to take."""

POLL_S: Final = 0.25
"""How often a followed file is looked at; what tail's users are used to, rounded down."""

STDIN: Final = "-"
"""The name that stands for standard input."""


class Line(NamedTuple):
    """A line's 1-based number, the offset of its first byte, and its content; None for a line too long to load."""

    number: int
    start: int
    content: bytes | None


Piece = tuple[list[Line], int]
"""Lines that were completed together, and how many bytes were read for them."""


async def read(name: str) -> AsyncIterator[Piece]:
    """Read to the end; an unterminated rest is a line too. Raises OSError."""
    with _opened(name) as fd:
        lines = Lines()
        while data := await _read(fd):
            yield lines.feed(data), len(data)
        yield lines.finish(), 0


async def follow(name: str, on_missing: Callable[[OSError], None]) -> AsyncIterator[Piece]:
    """Read a file as it grows, then the one that has its name next, and so on; a pipe only to its end.

    ``on_missing`` is called once for each time that there is no such file; it is waited for.
    """
    if not _may_grow(name):
        async for piece in read(name):
            yield piece
        return
    missing = False
    while True:
        try:
            with _opened(name) as fd:
                missing = False
                async for piece in _grow(name, fd):
                    yield piece
        except OSError as error:
            if not missing:
                on_missing(error)
            missing = True
            await asyncio.sleep(POLL_S)


async def _grow(name: str, fd: int) -> AsyncIterator[Piece]:
    """Read an open file until another has taken its name, or until it was truncated; only then does a rest count."""
    lines = Lines()
    over = False
    while not over:
        over = _is_over(name, fd)  # asked first, so that all that was written before is read
        while data := await _read(fd):
            yield lines.feed(data), len(data)
        await asyncio.sleep(0 if over else POLL_S)
    yield lines.finish(), 0


def _is_over(name: str, fd: int) -> bool:
    this = os.fstat(fd)
    if this.st_size < os.lseek(fd, 0, os.SEEK_CUR):
        return True
    try:
        named = os.stat(name)
    except OSError:  # renamed, and no new one yet
        return False
    # While the new file is empty its writer may still be writing to the old one.
    return named.st_size > 0 and not os.path.samestat(this, named)


class Lines:
    """Cuts a file into lines that know where they stand, whatever the pieces it is read in."""

    def __init__(self) -> None:
        self._number = 0
        self._start = 0  # of the line that is being read
        self._size = 0  # of what has been read of it
        self._rest = bytearray()  # the same, unless it is too long

    def feed(self, data: bytes) -> list[Line]:
        *ends, rest = data.split(b"\n")
        lines = [self._end_line(end) for end in ends]
        self._keep(rest)
        return lines

    def finish(self) -> list[Line]:
        """At the end of a file an unterminated rest is a line too."""
        return [self._end_line(b"")] if self._size else []

    def _end_line(self, end: bytes) -> Line:
        content: bytes | None = end
        size = len(end)
        if self._size:
            self._keep(end)
            size = self._size
            content = bytes(self._rest) if size <= MAX_LINE_BYTES else None
            self._rest.clear()
            self._size = 0
        if content is not None:
            content = content.removesuffix(b"\r")
            if self._start == 0:
                content = content.removeprefix(BOM)
        start = self._start
        self._start += size + 1
        self._number += 1
        return Line(self._number, start, content)

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= MAX_LINE_BYTES:
            self._rest += part
        else:
            self._rest.clear()


@contextlib.contextmanager
def _opened(name: str) -> Iterator[int]:
    if name == STDIN:
        if sys.stdin is None:  # its descriptor may be somebody else's by now
            raise OSError(errno.EBADF, "closed")
        yield sys.stdin.fileno()
        return
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe without a writer must not hold up the loop
    try:
        yield fd
    finally:
        os.close(fd)


async def _read(fd: int) -> bytes:
    """The next chunk; nothing at the end. Waits without a thread: one that reads a terminal can't be interrupted."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    while True:
        try:
            loop.add_reader(fd, ready.set)
        except PermissionError:  # a regular file: always ready, and not to be waited for
            await asyncio.sleep(0)
        else:
            try:
                await ready.wait()
            finally:
                loop.remove_reader(fd)
        with contextlib.suppress(BlockingIOError):
            return os.read(fd, CHUNK_BYTES)
        ready.clear()


def _may_grow(name: str) -> bool:
    """Whether there is a regular file, or none yet, as against a pipe or a terminal."""
    try:
        return name != STDIN and stat.S_ISREG(os.stat(name).st_mode)
    except OSError:
        return True


def total_bytes(names: list[str]) -> int | None:
    """How much there is to read, when all are regular files."""
    try:
        found = [os.stat(0 if name == STDIN else name) for name in names]
    except OSError:
        return None
    return sum(one.st_size for one in found) if all(stat.S_ISREG(one.st_mode) for one in found) else None
