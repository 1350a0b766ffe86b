"""A file that is replaced as a whole: after a crash it is the old file or the new file, never a part of one."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Replace the file's content. Raises OSError."""
    made = path.with_name(path.name + ".new")
    with made.open("wb") as new:
        new.write(content)
        new.flush()
        os.fsync(new.fileno())
    os.replace(made, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
