"""Files, pipes and standard input: opened, distinguished, and read without holding up the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from typing import Final

from aggregator.client.descriptors import open_to_read
from aggregator.client.send import content
from aggregator.client.send.content import Refused
from aggregator.client.send.identity import FileId, file_id
from aggregator.client.send.track import CHUNK_BYTES

STDIN: Final = "-"
"""The name that stands for standard input."""


@contextlib.contextmanager
def opened(name: str) -> Iterator[int]:
    if name == STDIN:
        if sys.stdin is None:  # its descriptor may belong to another file by now
            raise OSError(errno.EBADF, "closed")
        yield sys.stdin.fileno()
        return
    fd = open_to_read(name)
    try:
        yield fd
    finally:
        os.close(fd)


async def read_stream(fd: int) -> bytes:
    """The next chunk; empty at the end. No thread waits for it: one that reads a terminal cannot be interrupted."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    while True:
        try:
            loop.add_reader(fd, ready.set)
        except PermissionError:  # a regular file is always ready, and cannot be waited for
            await asyncio.sleep(0)
        else:
            try:
                await ready.wait()
            finally:
                loop.remove_reader(fd)
        with contextlib.suppress(BlockingIOError):
            return os.read(fd, CHUNK_BYTES)
        ready.clear()


def may_grow(name: str) -> bool:
    """Whether the name is that of a regular file, or of none yet, as opposed to a pipe or a terminal."""
    try:
        return name != STDIN and stat.S_ISREG(os.stat(name).st_mode)
    except OSError:
        return True


def is_file(fd: int) -> bool:
    """Whether the file can be read at any offset. The kernel's own files say that they are empty, but are not."""
    status = os.fstat(fd)
    return stat.S_ISREG(status.st_mode) and (status.st_size > 0 or not os.pread(fd, 1, 0))


def id_of(name: str) -> FileId | None:
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):  # before opening, because opening disturbs a pipe
            return None
        with opened(name) as fd:
            return file_id(fd)
    except OSError:
        return None


def total_bytes(names: list[str]) -> int | None:
    """How much there is to read; None unless all are regular files of text."""
    total = 0
    for name in names:
        try:
            status = os.fstat(0) if name == STDIN else os.stat(name)  # before opening: that disturbs a pipe
            if not stat.S_ISREG(status.st_mode):
                return None
            with opened(name) as fd:
                if content.compression(os.pread(fd, content.HEAD_BYTES, 0)):
                    return None
        except (OSError, Refused):
            return None
        total += status.st_size
    return total
