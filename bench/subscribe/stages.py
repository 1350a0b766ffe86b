"""What an event of a catch-up costs at each stage, one after another in one process, with nothing else running."""

from __future__ import annotations

import gc
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvloop

from aggregator import storage
from aggregator.cli.serve import GC_THRESHOLDS
from aggregator.config import Config
from aggregator.server import pieces
from aggregator.server.pieces import Piece
from aggregator.storage.engine import Stretch
from aggregator.storage.sqlite import block
from aggregator.storage.sqlite.reader import SLICE_BLOCKS
from aggregator.wire.interest import Interest, interest_in

MAX_EVENTS: Final = 200_000
"""Enough events to measure it: all that a stage makes is kept for the next one."""

_SLICE: Final = """
SELECT first_seq, received_at, topics, numbers, ends, data
FROM blocks WHERE first_seq BETWEEN ? AND ? ORDER BY first_seq LIMIT ?
"""


def one_round(database: Path, events: int) -> dict[str, Any]:
    """Measure the first ``events`` events of a store that no server has open."""
    events = min(events, MAX_EVENTS)
    thresholds = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        stages = _stages(database, events)
        whole = uvloop.run(_as_the_server_does(database, events))
    finally:
        gc.set_threshold(*thresholds)
    return {"us_per_event": stages, **whole}


def _stages(database: Path, events: int) -> dict[str, float]:
    interest = interest_in(("*",))
    us: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.thread_time()
        done = work()
        us[name] = round((time.thread_time() - started) / events * 1e6, 4)
        return done

    slices = timed("SQLite", lambda: _rows(database, events))
    stretches = timed("cut into events", lambda: [[_stretch(row) for row in rows] for rows in slices])
    written = timed("encode lines", lambda: [piece for one in stretches for piece in _pieces(interest, one)])
    with _Drain() as drain:
        timed("write to the socket", lambda: _write(drain.connection, written))
    us["sum"] = round(sum(us.values()), 4)
    return us


def _rows(database: Path, events: int) -> list[list[Any]]:
    connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)
    slices, following = [], 1
    while following <= events:
        rows = connection.execute(_SLICE, (following, events, SLICE_BLOCKS)).fetchall()
        if not rows:
            break
        slices.append(rows)
        following = rows[-1][0] + 1
    connection.close()
    return slices


def _stretch(row: Any) -> Stretch:
    first_seq, received_at, topics, numbers, ends, data = row
    return Stretch(*block.columns(first_seq, topics, numbers, ends, data, None), received_at)


def _pieces(interest: Interest, stretches: list[Stretch]) -> list[Piece]:
    return list(pieces.of_slice(interest, stretches, None))


def _write(connection: socket.socket, written: list[Piece]) -> None:
    for piece in written:
        connection.sendall(piece.data)


async def _as_the_server_does(database: Path, events: int) -> dict[str, Any]:
    """Read slice after slice with the engine and encode the events: everything that a server does except the socket."""
    interest = interest_in(("*",))
    engine = await storage.open(Config(db=database))
    try:
        position, count = engine.parse_position("0"), 0
        assert position is not None
        until = engine.advance(position, range(1, events + 1))
        started, cpu_s = time.perf_counter(), time.process_time()
        while position != until:
            found = await engine.read(interest, position, until, background=True)
            count += sum(len(piece.seqs) for piece in _pieces(interest, list(found.stretches)))
            position = found.position
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    finally:
        await engine.close()
    return {
        "without_socket_per_s": round(count / seconds),
        "without_socket_cpu_us": round(cpu_s / events * 1e6, 4),
        "exact": count == events,
    }


class _Drain:
    """A connection over loopback whose other end reads everything that is sent."""

    def __enter__(self) -> _Drain:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.connection = socket.create_connection(listener.getsockname())
            self._theirs, _ = listener.accept()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._thread.join()
        self._theirs.close()

    def _read(self) -> None:
        buffer = bytearray(1 << 18)
        while self._theirs.recv_into(buffer):
            pass
