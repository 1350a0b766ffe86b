"""The events in the SQLite file of a peer, seen from outside."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final

STALL_S: Final = 60.0


def count(path: Path) -> int:
    return _ask(path, "SELECT count(*) FROM events")


def wait_for(path: Path, total: int) -> None:
    """Wait until a peer that acks before it stores has stored ``total`` events. Raises TimeoutError.

    The largest rowid is their number, because rows are only ever added. Unlike a count, it costs the peer nothing.
    """
    best, since = -1, time.monotonic()
    while (now := _ask(path, "SELECT ifnull(max(rowid), 0) FROM events")) < total:
        if now > best:
            best, since = now, time.monotonic()
        elif time.monotonic() - since > STALL_S:
            raise TimeoutError(f"{now} of {total} stored, and no more in {STALL_S:g} s")
        time.sleep(0.02)


def _ask(path: Path, query: str) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        (answer,) = database.execute(query).fetchone()
    return int(answer)
