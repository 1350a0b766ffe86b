"""The open database: its connections, its files, and what SQLite's errors mean.

Rules that hold here:

- There is exactly one read-write connection, and only that one checkpoints (SQLite before 3.51.3 can corrupt a database
  that two connections write or checkpoint at once). Reads go through connections with ``mode=ro``, and never wait for a
  commit. Readers that catch up have a connection of their own, so that commands never wait for them.
- While SQLite has the database files open, only SQLite may close a descriptor of them: closing any other descriptor
  would drop SQLite's POSIX locks.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any, Final, Self

import aiosqlite

from aggregator.storage.engine import StorageBusy, StorageFailed, StorageFull, StorageUnusable
from aggregator.storage.sqlite import file, schema

MIN_SQLITE: Final = (3, 38, 0)  # from here on json_each() is always included

PAGE_BYTES: Final = 4096
CACHE_KIB: Final = 64 * 1024
"""SQLite's page cache for the writer: for the inner pages of the ledger's runs, and for runs that are still small."""

WAL_FILE_BYTES: Final = 64 << 20
"""The size to which the WAL's file is cut when SQLite restarts the WAL, if the file has grown because of a reader."""

STATEMENTS: Final = 24
"""How many prepared statements a connection keeps. Those that look for keys name all tables of keys, which change with
every flush. Of 128, Python's default, most would name tables that are gone; they held 9 MB at 25 million keys."""

BUSY_TIMEOUT_S: Final = 1.0
"""How long SQLite waits for a foreign writer before the batch is tried again from the start."""


class Connection(sqlite3.Connection):
    """The parameters of a statement may be a function: SQLite's thread calls it when the statement's turn has come."""

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        return super().execute(sql, parameters(self) if callable(parameters) else parameters)


class Database:
    """One SQLite database. Made by ``open``; must be closed, or the process never ends (aiosqlite's threads)."""

    writer: aiosqlite.Connection
    reader: aiosqlite.Connection
    background_reader: aiosqlite.Connection

    def __init__(self, path: Path, made: list[Path]) -> None:
        self.path, self.wal_path, *_ = files = file.beside(path)
        self._made = made  # created by this start, removed if it fails: files first, folders from the innermost on
        self._names = file.Names(files)
        self._size = 0  # of the database file when it was last checked
        self._lock_fd = -1
        self._db_fd = -1  # never closed before SQLite's own descriptors: that would drop its locks
        self._wal_fd = -1
        self._connections: list[aiosqlite.Connection] = []

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open or create the database. Raises StorageUnusable; a file that is not ours is left as it was."""
        if sqlite3.sqlite_version_info < MIN_SQLITE:
            raise StorageUnusable(f"SQLite {sqlite3.sqlite_version} is too old: 3.38 or newer is needed")
        made: list[Path] = []
        try:
            file.make_folder(path.parent, made)
            path = path.resolve()  # noqa: ASYNC240 (nothing runs yet)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            database = cls(path, made)
            database._lock()
        except (OSError, RuntimeError, StorageUnusable) as error:  # RuntimeError: a loop of links
            file.remove(made)
            if isinstance(error, StorageUnusable):
                raise
            raise unusable(path, error) from error
        try:
            await database._open()
        except BaseException as error:
            await database.abandon()
            if isinstance(error, sqlite3.Error | OSError):
                raise unusable(path, error) from error
            raise
        return database

    def _lock(self) -> None:
        database, wal, shm, lock = file.beside(self.path)
        files = [lock] if database.exists() or wal.exists() else [wal, shm, database, lock]
        missing = [one for one in files if not one.exists()]
        self._lock_fd = file.lock(self.path)
        self._made[:0] = missing

    async def _open(self) -> None:
        if not self.db_bytes and self.wal_bytes:
            raise StorageUnusable(
                f"{self.path} is missing or empty, but {self.wal_path.name} holds events: restore one or move both"
            )
        file.refuse_foreign(self.path)
        file.refuse_links(self.path)
        crashed = self.wal_bytes > 0
        if crashed:
            file.rewrite(self.wal_path)
        self.writer = await self._connect(self.path, timeout=BUSY_TIMEOUT_S)
        self._db_fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        if crashed:
            self.distrust_cache()
        await self.write("PRAGMA synchronous = FULL")
        if await self._pragma("application_id") != schema.APPLICATION_ID:
            # A new file, or one whose creation was interrupted. The schema comes before the WAL, so that the file
            # itself says whose it is.
            await self.write(f"PRAGMA page_size = {PAGE_BYTES}")
            await self.writer.executescript(schema.SCHEMA)
        for pragma in (
            "journal_mode = WAL",
            "wal_autocheckpoint = 0",  # a failing automatic checkpoint would be silent
            f"journal_size_limit = {WAL_FILE_BYTES}",
            f"cache_size = -{CACHE_KIB}",
            "temp_store = MEMORY",
            "secure_delete = OFF",  # Debian's SQLite would overwrite each merged run with zeros
        ):
            await self.write(f"PRAGMA {pragma}")
        await self.writer.executescript(schema.TEMPORARY)
        self.reader = await self._connect(f"{self.path.as_uri()}?mode=ro", uri=True)
        self.background_reader = await self._connect(f"{self.path.as_uri()}?mode=ro", uri=True)
        promised = {"journal_mode": "wal", "synchronous": 2}
        found = {name: await self._pragma(name) for name in promised}
        if found != promised:
            raise StorageUnusable(f"cannot use {self.path}: an ack would not be durable with {found}")
        await self.write("SELECT next_seq FROM totals")  # SQLite creates the WAL at the first read
        self._wal_fd = os.open(self.wal_path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = self.db_bytes
        self.verify_names()  # from now on the names are known to lead to these files

    async def _connect(self, database: Path | str, **options: Any) -> aiosqlite.Connection:
        # isolation_level None: SQLite's own autocommit, so that one statement is one transaction.
        connection = await aiosqlite.connect(
            database, isolation_level=None, factory=Connection, cached_statements=STATEMENTS, **options
        )
        self._connections.append(connection)
        return connection

    async def write(self, sql: str, parameters: Any = ()) -> list[sqlite3.Row]:
        """Run one statement, which is one transaction, and fetch what it returns. Raises sqlite3.Error.

        The writer's thread fetches the rows, and ends the cursor too: a cursor that is dropped in the event loop would
        wait there for SQLite's mutex, that is, for the whole of the next commit.
        """
        return list(await self.writer.execute_fetchall(sql, parameters))

    async def read(self, sql: str, parameters: Any, background: bool = False) -> list[sqlite3.Row]:
        """Read through a connection that never waits for a commit. Raises sqlite3.Error."""
        connection = self.background_reader if background else self.reader
        while True:
            try:
                return list(await connection.execute_fetchall(sql, parameters))
            except sqlite3.OperationalError as error:
                # Tables of keys come and go. SQLite tries again by itself, but not for ever.
                if error.sqlite_errorcode != sqlite3.SQLITE_SCHEMA:
                    raise

    async def _pragma(self, name: str) -> Any:
        return (await self.write(f"PRAGMA {name}"))[0][0]

    @property
    def db_bytes(self) -> int:
        return file.size(self.path)

    @property
    def wal_bytes(self) -> int:
        return file.size(self.wal_path)

    def distrust_cache(self) -> None:
        """Make the kernel drop its clean pages of the database from memory.

        After a write error such pages may not be on the disk. If the next checkpoint overwrote them in memory, ext4
        would take their blocks for written. The WAL would be given up, and a power cut would leave a database with
        holes.
        """
        os.posix_fadvise(self._db_fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def verify_names(self, again: bool = False) -> None:
        """Raise StorageFailed if a name of the database no longer leads to the open file, or if the WAL is no WAL.

        ``again``: there was no fault a moment ago, so a look at the folder tells whether any name has changed.
        """
        try:
            overwritten = not file.is_wal(self._wal_fd)
        except OSError as error:
            raise StorageFailed(f"{self.wal_path}: {error.strerror}") from error
        found = self._names.fault_if_folder_changed() if again else self._names.fault()
        if fault := found or (overwritten and f"{self.wal_path} was overwritten while it was open"):
            raise StorageFailed(fault)

    async def verify_size(self) -> None:
        """Raise StorageFailed if the database file was overwritten. Raises sqlite3.Error.

        The size must lie between the last size and the size that the file will have when the whole WAL is copied.
        """
        before, self._size = self._size, self.db_bytes
        if self._size != before:
            goal = int(await self._pragma("page_count")) * PAGE_BYTES
            if not min(before, goal) <= self._size <= max(before, goal):
                raise StorageFailed(f"{self.path} was overwritten while it was open")

    async def data_version(self) -> int:
        """A number that changes when another program has written to the database."""
        return int(await self._pragma("data_version"))

    async def abandon(self) -> None:
        """Close the database after a failed start, and remove everything that this start has created."""
        await self._close_connections()
        file.remove(self._made)  # while the lock is held
        await self.close()

    async def close(self) -> None:
        """Close the database and release the lock. SQLite empties the WAL when the last connection is closed."""
        try:
            await self._close_connections()
        finally:
            for fd in (self._db_fd, self._wal_fd, self._lock_fd):
                if fd >= 0:
                    os.close(fd)
            self._db_fd = self._wal_fd = self._lock_fd = -1

    async def _close_connections(self) -> None:
        while self._connections:  # the readers first, because only the writer may copy the WAL
            await self._connections.pop().close()


def unusable(path: Path, error: Exception) -> StorageUnusable:
    """Why the database cannot be used, in the system's words, with the file that is to blame."""
    if isinstance(error, OSError):
        if error.errno == errno.ELOOP and error.filename:
            return StorageUnusable(f"cannot use {error.filename}: it is a symbolic link")
        return StorageUnusable(f"cannot use {error.filename or path}: {error.strerror or error}")
    full = isinstance(error, sqlite3.Error) and isinstance(storage_error(error), StorageFull)
    return StorageUnusable(f"cannot use {file.blame(path)}: {os.strerror(errno.ENOSPC) if full else error}")


def storage_error(error: sqlite3.Error) -> StorageFull | StorageBusy | StorageFailed:
    """What an error of the connection that writes means for the batch."""
    name: str = getattr(error, "sqlite_errorname", None) or type(error).__name__
    # SHMSIZE: the shared-memory file could not be extended. Both mean that the transaction did not happen.
    if name in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"):
        return StorageFull("no space left on the disk of the database")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StorageBusy("another program is writing to the database")
    return StorageFailed(f"{error} ({name})")
