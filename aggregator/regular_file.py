"""Files that are read as a whole, at the start and while a server runs. They must be regular files: opening a FIFO
that has no writer would block the server.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def opened(path: Path) -> BinaryIO:
    """The file, opened for reading. Raises OSError, also for anything but a regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "not a regular file")
    return os.fdopen(descriptor, "rb")


def read(path: Path) -> bytes:
    """The whole content of the file. Raises OSError."""
    with opened(path) as file:
        return file.read()
