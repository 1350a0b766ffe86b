"""Descriptors of this process: enough for all files, and some left for everything else."""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

SPARE_DESCRIPTORS: Final = 24
"""Descriptors that files may not take. The program needs them for everything else, its connection above all."""


def allow_descriptors(files: int) -> None:
    """Raise the soft limit to what this many files need, as far as the hard limit allows."""
    needed = files + 2 * SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def open_to_read(name: str) -> int:
    """Open a file or pipe, unless that takes one of the spare descriptors. Raises OSError."""
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe without a writer must not hold up the loop
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and fd >= soft - SPARE_DESCRIPTORS:
        os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return fd
