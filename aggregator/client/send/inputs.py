"""Files, pipes and standard input: opened, told apart, and read without holding up the event loop."""

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
        if sys.stdin is None:  # its descriptor may be somebody else's by now
            raise OSError(errno.EBADF, "closed")
        yield sys.stdin.fileno()
        return
    fd = open_to_read(name)
    try:
        yield fd
    finally:
        os.close(fd)


async def read_stream(fd: int) -> bytes:
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


def may_grow(name: str) -> bool:
    """Whether there is a regular file, or none yet, as against a pipe or a terminal."""
    try:
        return name != STDIN and stat.S_ISREG(os.stat(name).st_mode)
    except OSError:
        return True


def is_file(fd: int) -> bool:
    """Whether it may be read at any place. Files of the kernel's own say that they are empty, and are not."""
    status = os.fstat(fd)
    return stat.S_ISREG(status.st_mode) and (status.st_size > 0 or not os.pread(fd, 1, 0))


def id_of(name: str) -> FileId | None:
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):  # before it is opened: that disturbs a pipe
            return None
        with opened(name) as fd:
            return file_id(fd)
    except OSError:
        return None


def total_bytes(names: list[str]) -> int | None:
    """How much there is to read, when all are regular files of text."""
    total = 0
    for name in names:
        try:
            status = os.fstat(0) if name == STDIN else os.stat(name)  # before it is opened: that disturbs a pipe
            if not stat.S_ISREG(status.st_mode):
                return None
            with opened(name) as fd:
                if content.compression(os.pread(fd, content.HEAD_BYTES, 0)):
                    return None
        except (OSError, Refused):
            return None
        total += status.st_size
    return total
