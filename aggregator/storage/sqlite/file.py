"""The database as a file, outside of SQLite: the lock, whose file it is, and what a crash has left in the WAL.

The lock keeps a second server out. Everything happens before SQLite opens the file, except for ``Names``, ``is_wal``
and ``size``, and except for what a failed start does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from aggregator.storage.engine import StorageUnusable
from aggregator.storage.sqlite import schema

COPY_BYTES: Final = 1 << 20
"""How much of the WAL is rewritten at a time after a crash."""

SETTLED_NS: Final = 1_000_000_000
"""How old the last change of a folder must be, so that the next change certainly gets another time: file systems count
in steps of a few milliseconds, and some in seconds."""

_WAL_MAGIC: Final = 0x377F0682  # or this plus one: the last bit is the byte order of the WAL's checksums


def make_folder(folder: Path, made: list[Path]) -> None:
    """Create a folder and those above it so that they survive a power cut: syncing its parent makes an entry durable.

    The folders that were created are put at the head of ``made``.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent, made)
    try:
        folder.mkdir()
    except FileExistsError:  # if it is a file, opening something in it fails and says so
        return
    made.insert(0, folder)
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def remove(paths: Iterable[Path]) -> None:
    """Remove what a failed start has created: files, and folders that are empty."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def beside(path: Path) -> list[Path]:
    """The files that a database consists of, its lock last."""
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", ".lock")]


def lock(path: Path) -> int:
    """Take a lock, which holds until the returned descriptor is closed.

    The lock is on a file of its own, because SQLite itself locks the database file.

    Raises StorageUnusable, and OSError with the name of the lock file.
    """
    *_, name = beside(path)
    while True:
        # With a link, anybody who may write to the folder could make the server overwrite another of its files.
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(fd)
            os.close(fd)
            raise StorageUnusable(f"{path} is in use by another aggregator (process {owner or 'unknown'})") from None
        if _is_named(fd, name):
            break
        os.close(fd)  # a server whose start failed has just removed it
    if _owner(fd) is not None:
        with contextlib.suppress(OSError):  # a full disk: the process id of the owner is only a courtesy
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def _owner(fd: int) -> str | None:
    """The process that a lock file names; None if the file holds anything else, and so must not be overwritten."""
    try:
        text = os.pread(fd, 32, 0)
    except OSError:  # a pipe
        return None
    return text.decode().strip() if re.fullmatch(rb"[0-9]*\n?", text) else None


def _is_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


class Names:
    """Remembers which files have these names, to notice that a name leads to another file now, or to none.

    A file that was unlinked or replaced while it is open goes on taking writes, and no start will ever find them.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """All paths are in one folder."""
        self._paths = list(map(str, paths))
        self._folder = str(paths[0].parent)
        self._known: dict[str, tuple[int, int]] = {}
        # The folder and its last change, as of the last check without a fault.
        self._settled: tuple[int, int, int] | None = None

    def fault(self) -> str | None:
        """What has happened to the first name that no longer leads to the file that it led to at its first check."""
        looked_at = self._look_at_folder()
        fault = self._find_fault()
        self._settled = None if fault else looked_at
        return fault

    def fault_if_folder_changed(self) -> str | None:
        """As ``fault``, but with one system call if no name in the folder was added, removed or replaced since.

        It does not notice a file that was mounted over one of these names.
        """
        if self._settled and self._look_at_folder() == self._settled:
            return None
        return self.fault()

    def _look_at_folder(self) -> tuple[int, int, int] | None:
        """Which folder it is, and when its names last changed; None if the next change might get the same time."""
        try:
            found = os.stat(self._folder)
        except OSError:
            return None
        is_settled = time.time_ns() - found.st_mtime_ns > SETTLED_NS
        return (found.st_dev, found.st_ino, found.st_mtime_ns) if is_settled else None

    def _find_fault(self) -> str | None:
        for path in self._paths:
            try:
                found = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                if path in self._known:
                    return f"{path} was removed while it was open"
                continue
            except OSError as error:  # a start would not find it either
                return f"{path}: {error.strerror}"
            identity = found.st_dev, found.st_ino
            if self._known.setdefault(path, identity) != identity:
                return f"{path} was replaced while it was open"
        return None


def blame(path: Path) -> Path:
    """The first file of the database that this process may not read and write; the database itself if there is none."""
    for one in beside(path):
        if one.exists() and not os.access(one, os.R_OK | os.W_OK):
            return one
    return path


def refuse_links(path: Path) -> None:
    """Raise StorageUnusable if the WAL or the shared memory is a symbolic link: SQLite would write over its target."""
    for one in beside(path)[1:]:
        if one.is_symlink():
            raise StorageUnusable(f"cannot use {one}: it is a symbolic link")


def refuse_foreign(path: Path) -> None:
    """Raise StorageUnusable unless the file is a database of ours, or is empty, or does not exist.

    This reads SQLite's file header (sqlite.org/fileformat2.html, section 1.3) before SQLite itself opens the file.
    SQLite would take a file of a few bytes for an empty database, and would recover another program's database.
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
    """Make a file durable as it reads now: write its own bytes over it, and sync.

    This is for the WAL that a crash has left. After a write error the kernel keeps the pages that it could not write,
    marks them as clean, and lets the next sync succeed without them. The recovery would find commits that are in memory
    only; a power cut would lose them and all commits after them. A reader that has the WAL open does not notice.
    """
    with path.open("r+b", buffering=0) as file:
        os.fsync(file.fileno())  # only clean pages can be dropped
        start = 0
        while chunk := os.pread(file.fileno(), COPY_BYTES, start):
            # Dropped first: if these pages were overwritten in memory, ext4 would take blocks for written that it
            # could not write.
            os.posix_fadvise(file.fileno(), start, COPY_BYTES, os.POSIX_FADV_DONTNEED)
            start += os.pwrite(file.fileno(), chunk, start)
        os.fsync(file.fileno())


def is_wal(fd: int) -> bool:
    """Whether an open file is a WAL, by its first bytes (sqlite.org/fileformat2.html, section 4.1), or empty."""
    head = os.pread(fd, 4, 0)
    return not head or int.from_bytes(head) | 1 == _WAL_MAGIC | 1


def size(path: Path) -> int:
    """In bytes; 0 if no file can be found. By ``stat``, because closing a descriptor would drop SQLite's locks."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
