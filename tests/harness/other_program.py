"""Another program that uses the same database, as a backup or an administrator's sqlite3 does."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def holding_a_snapshot(db: Path) -> Iterator[None]:
    """It reads the database as it is now: until the end of the block, the WAL is needed as it is."""
    with contextlib.closing(sqlite3.connect(f"{db.as_uri()}?mode=ro", uri=True, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        yield


@contextmanager
def holding_the_lock(db: Path) -> Iterator[None]:
    """It holds the write lock until the end of the block, and writes nothing."""
    with contextlib.closing(sqlite3.connect(db, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        yield
