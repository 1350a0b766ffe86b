"""The file of ``--cursor-file``: how far a reader has come, and in which store. It is replaced as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import orjson

from aggregator.client.query import Position
from aggregator.client.replace import replace


class Cursor(NamedTuple):
    """A position, and the store that it belongs to."""

    store: str
    seq: Position


class BadCursor(Exception):
    """The file holds something else."""


def load(path: Path) -> Cursor | None:
    """What was saved; None if nothing was. Raises OSError and BadCursor."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        fields = None
    match fields:
        case {"store": str(store), "seq": int() | str() as seq} if not isinstance(seq, bool):
            return Cursor(store, seq)
    raise BadCursor(f"{path}: not a cursor file")


def save(path: Path, cursor: Cursor) -> None:
    """Raises OSError. After a crash the file holds this cursor, or the one before."""
    replace(path, orjson.dumps(cursor._asdict(), option=orjson.OPT_APPEND_NEWLINE))
