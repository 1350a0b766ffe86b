"""The database as a file, apart from what SQLite does with it: the lock that keeps a second server out, whose file it
is, what a crash has left in the WAL.

All of it happens before SQLite opens the file, except for ``size``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from aggregator.storage.engine import StorageUnusable
from aggregator.storage.sqlite import schema

COPY_BYTES: Final = 1 << 20
"""How much of the WAL is rewritten at a time after a crash."""


def make_folder(folder: Path) -> None:
    """Make a folder and the ones above it so that they survive a power cut: a new entry is durable with its parent."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):  # if it is a file, opening something in it will say so
        folder.mkdir()
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def lock(path: Path) -> int:
    """Hold a lock until the returned descriptor is closed. It is on a file of its own: SQLite locks the database."""
    fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(fd, 32).decode(errors="replace").strip()
        os.close(fd)
        raise StorageUnusable(f"{path} is in use by another aggregator (process {owner or 'unknown'})") from None
    with contextlib.suppress(OSError):  # a full disk: the name of the owner is a courtesy
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def refuse_foreign(path: Path) -> None:
    """Raise StorageUnusable unless the file is a database of ours, or empty, or not there.

    Looks at SQLite's file header (sqlite.org/fileformat2.html, section 1.3) before SQLite itself opens the file: SQLite
    would take a file of a few bytes for an empty database, and would recover another program's.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return
    if not header:
        return
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise StorageUnusable(f"cannot use {path}: it is not a database")
    version = int.from_bytes(header[60:64])
    if int.from_bytes(header[68:72]) != schema.APPLICATION_ID:
        raise StorageUnusable(f"cannot use {path}: it is a database of another program")
    if version != schema.VERSION:
        other = "a newer" if version > schema.VERSION else "an older, unreleased"
        raise StorageUnusable(
            f"{path} was written by {other} aggregator (schema {version}, this one knows {schema.VERSION})"
        )


def rewrite(path: Path) -> None:
    """Make a file durable as it is read now: write its own bytes over it, and sync.

    For the WAL that a crash has left. After a write error the kernel keeps what it could not write, marks it as clean,
    and lets the next sync succeed without it: the recovery would find commits that are in memory only, and those that
    follow them would be lost with them in a power cut. A reader that has the WAL open does not notice.
    """
    with path.open("r+b", buffering=0) as file:
        os.fsync(file.fileno())  # only what is clean can be dropped
        start = 0
        while chunk := os.pread(file.fileno(), COPY_BYTES, start):
            # Forgotten first: written over in memory, ext4 would take the place for written that it could not write.
            os.posix_fadvise(file.fileno(), start, COPY_BYTES, os.POSIX_FADV_DONTNEED)
            start += os.pwrite(file.fileno(), chunk, start)
        os.fsync(file.fileno())


def size(path: Path) -> int:
    """In bytes; 0 where there is no file. By ``stat``, because closing a descriptor would drop SQLite's locks."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
