"""What the disk and SQLite alone can do: the ceiling that throughput is compared with, and the fsync for latency."""

from __future__ import annotations

import os
import sqlite3
import statistics
import time
from pathlib import Path
from typing import Final

import orjson

BATCH: Final = 10_000
BAR: Final = 0.45
"""The part of the ceiling that throughput should reach."""

CHECKPOINT_BYTES: Final = 64 << 20
FSYNCS: Final = 500
MAX_LINES: Final = 300_000
"""So many rows are enough to measure the ceiling."""

_APPEND: Final = """
INSERT INTO events
SELECT :first + key, 1, 1790000000000, CAST(substr(:data, value >> 24, value & 16777215) AS TEXT)
FROM json_each(:spans)
"""


def append_rate(folder: Path, lines: list[bytes]) -> float:
    """Rows a second when the same rows are appended to a table without any index, 10,000 a statement, each fsynced.

    The columns are those of the server's own table. The whole batch is bound as one text and one array of numbers
    that say where each column lies in the text. This is the fastest way known to us.
    """
    path = folder / "ceiling.db"
    database = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=0"):
        database.execute(f"PRAGMA {pragma}")
    database.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, topic INTEGER, received_at INTEGER, json TEXT)")
    rows = [line[:-1] for line in lines]
    wal = path.with_name(path.name + "-wal")
    started = time.perf_counter()
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        start = 1
        spans = []
        for row in batch:
            spans.append(start << 24 | len(row))
            start += len(row)
        data = b"".join(batch)
        database.execute(_APPEND, {"first": first, "spans": orjson.dumps(spans).decode(), "data": data})
        if wal.stat().st_size > CHECKPOINT_BYTES:
            database.execute("PRAGMA wal_checkpoint(PASSIVE)")
    seconds = time.perf_counter() - started
    stored = database.execute("SELECT count(*) FROM events").fetchone()[0]
    database.close()
    path.unlink()
    assert stored == len(rows)
    return len(rows) / seconds


def fdatasync_ms(folder: Path) -> float:
    """The median time, in milliseconds, of writing 4 KiB in place followed by an fdatasync."""
    path = folder / "fdatasync"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    block = os.urandom(4096)
    os.pwrite(fd, block * FSYNCS, 0)
    os.fsync(fd)
    times = []
    for number in range(FSYNCS):
        started = time.perf_counter()
        os.pwrite(fd, block, number * len(block))
        os.fdatasync(fd)
        times.append(time.perf_counter() - started)
    os.close(fd)
    path.unlink()
    return statistics.median(times) * 1000
