"""The identity of a file, whatever its name: a renamed file stays the same, a new file under an old name is another.

The number of an inode is used again as soon as its file is gone, on ext4 for the very next file. So the time at which
the file was created is a part of its identity; the kernel tells it, for most file systems. If that time is known, the
number of the device is not a part of the identity, because it may change with every start of the machine.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

_AT_EMPTY_PATH: Final = 0x1000
_STATX_BTIME: Final = 0x800
_STATX_BYTES: Final = 256
_MASK_AT: Final = 0
_BTIME_AT: Final = 80


class FileId(NamedTuple):
    """A file's inode, when the file was created (ns since 1970), and its device, which is 0 if it is not needed.

    ``born`` is 0 if the file system does not tell (NFS, ext3, old kernels). Then a new file that gets the inode of a
    removed file is mistaken for that file.
    """

    inode: int
    born: int
    device: int

    def to_bytes(self) -> bytes:
        return b"%d %d %d" % self


def file_id(fd: int) -> FileId:
    """The identity of an open file."""
    status = os.fstat(fd)
    born = _birth_ns(fd)
    return FileId(status.st_ino, born, 0 if born else status.st_dev)


def _birth_ns(fd: int) -> int:
    """When a file was created, in ns since 1970; 0 if unknown. Python's os.stat() does not tell before 3.15."""
    statx = _statx()
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx is None or statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer) != 0:
        return 0
    (mask,) = struct.unpack_from("=I", buffer, _MASK_AT)
    if not mask & _STATX_BTIME:
        return 0
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, _BTIME_AT)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


@functools.cache
def _statx() -> Callable[..., Any] | None:
    """The C library's function of this name; glibc has it since 2.28."""
    try:
        return ctypes.CDLL(None).statx
    except (OSError, AttributeError):
        return None
