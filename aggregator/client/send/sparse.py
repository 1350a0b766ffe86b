"""Files with holes: finds the next byte that is not NUL."""

from __future__ import annotations

import errno
import os
from typing import Final

_STEP_BYTES: Final = 1 << 20


def next_data(fd: int, start: int) -> int | None:
    """The offset of the first byte from ``start`` on that is not NUL; None if there is none."""
    while True:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)  # skips a hole, however large
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
        block = os.pread(fd, _STEP_BYTES, start)
        if not block:
            return None
        if text := block.lstrip(b"\0"):
            return start + len(block) - len(text)
        start += len(block)
