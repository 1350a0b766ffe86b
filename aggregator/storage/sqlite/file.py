"""The database as a file, apart from what SQLite does with it: the lock that keeps a second server out, whose file it
is, what a crash has left in the WAL.

All of it happens before SQLite opens the file, except for ``size``.
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
"""How old the last change of a folder must be, so that the next one gets another time: file systems count in steps of a
few milliseconds, and some in seconds."""

_WAL_MAGIC: Final = 0x377F0682  # or one more: the byte order of its checksums


def make_folder(folder: Path, made: list[Path]) -> None:
    """Make a folder and the ones above it so that they survive a power cut: a new entry is durable with its parent.

    Those that were made are put at the head of ``made``.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent, made)
    try:
        folder.mkdir()
    except FileExistsError:  # if it is a file, opening something in it will say so
        return
    made.insert(0, folder)
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def remove(paths: Iterable[Path]) -> None:
    """Remove what a failed start has made: files, and folders that are empty."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def beside(path: Path) -> list[Path]:
    """The files that a database consists of, its lock last."""
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", ".lock")]


def lock(path: Path) -> int:
    """Hold a lock until the returned descriptor is closed. It is on a file of its own: SQLite locks the database.

    Raises StorageUnusable, and OSError with the name of the lock file.
    """
    *_, name = beside(path)
    while True:
        # A link would let whoever may write to the folder have another file of ours written over.
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(fd)
            os.close(fd)
            raise StorageUnusable(f"{path} is in use by another aggregator (process {owner or 'unknown'})") from None
        if _is_named(fd, name):
            break
        os.close(fd)  # a server whose start failed has removed it in this moment
    if _owner(fd) is not None:
        with contextlib.suppress(OSError):  # a full disk: the name of the owner is a courtesy
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def _owner(fd: int) -> str | None:
    """The process that a lock file names; None if it holds anything else, and so must not be written over."""
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
    """Which files were opened, by name, to notice that a name has become another file, or none.

    A file that was unlinked or replaced while it is open goes on taking writes, and no start will ever find them.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """All of them are in one folder."""
        self._paths = list(map(str, paths))
        self._folder = str(paths[0].parent)
        self._known: dict[str, tuple[int, int]] = {}
        self._settled: tuple[int, int, int] | None = None  # the folder, and when it was changed before all was well

    def fault(self) -> str | None:
        """What has become of the first of these names that is not the file it was when it was first looked at."""
        looked_at = self._look_at_folder()
        fault = self._find_fault()
        self._settled = None if fault else looked_at
        return fault

    def fault_if_folder_changed(self) -> str | None:
        """The same in one system call, where no name in the folder has come, gone or changed its file since ``fault``.

        It does not see a file that was mounted over one of these.
        """
        if self._settled and self._look_at_folder() == self._settled:
            return None
        return self.fault()

    def _look_at_folder(self) -> tuple[int, int, int] | None:
        """Which folder it is, and when its names last changed; None if that is not certain to differ next time."""
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
    """The file of the database that this process may not read and write, if there is such a one, else the database."""
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


def is_wal(fd: int) -> bool:
    """Whether an open file is a WAL by its first bytes (sqlite.org/fileformat2.html, section 4.1), or empty."""
    head = os.pread(fd, 4, 0)
    return not head or int.from_bytes(head) | 1 == _WAL_MAGIC | 1


def size(path: Path) -> int:
    """In bytes; 0 where no file can be found. By ``stat``, because closing a descriptor would drop SQLite's locks."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
