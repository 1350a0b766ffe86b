"""A file that is replaced as a whole: after a crash it is the old one or the new one, never a part."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Let the file have this content. Raises OSError."""
    made = path.with_name(path.name + ".new")
    with made.open("wb") as new:
        new.write(content)
        new.flush()
        os.fsync(new.fileno())
    os.replace(made, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
