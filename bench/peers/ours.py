"""This project's server, over four connections and over one, empty and with many events already stored."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from bench import latency, load
from bench.channel import Channel
from bench.peers import rows
from bench.peers.peer import Peer, Running, Work
from bench.process import Server
from bench.workload import Workload, generate

DATABASE: Final = "events.db"

LOADED_FROM: Final = 1 << 40
"""The number of the first event that is already stored; these events are never sent again."""

PIECE: Final = 500_000


def peers(rows: int) -> list[Peer]:
    """An empty server, and one with ``rows`` events already stored."""
    starts = {"": _start, f"; {rows} rows": _Loaded(rows).start} if rows else {"": _start}
    return [
        Peer(f"ours ({name}{variant})", "fsynced before the ack; exact for ever", True, partial(start, connections))
        for variant, start in starts.items()
        for name, connections in (("4 connections", 4), ("1 connection", 1))
    ]


@contextmanager
def _start(connections: int, folder: Path) -> Iterator[Running]:
    with Server(folder) as server:
        yield _Ours(server.port, folder / DATABASE, connections)


class _Loaded:
    """A database with many events. It is made once, beside the folders of the runs; each run gets a copy."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    @contextmanager
    def start(self, connections: int, folder: Path) -> Iterator[Running]:
        template = folder.parent / "ours-loaded"
        if not template.exists():
            self._load(template)
        shutil.copy(template / DATABASE, folder)
        os.sync()  # so that the copy is not written out during the run
        with Server(folder) as server:
            server.wait_until_filled()
            yield _Ours(server.port, folder / DATABASE, connections, self._rows)

    def _load(self, template: Path) -> None:
        template.mkdir()
        with Server(template) as server:
            for first in range(0, self._rows, PIECE):
                count = min(PIECE, self._rows - first)
                load.measure("127.0.0.1", server.port, generate(count, 0, 4, "random", LOADED_FROM + first))


class _Ours(Running):
    def __init__(self, port: int, database: Path, connections: int, rows: int = 0) -> None:
        self._port = port
        self._database = database
        self._connections = connections
        self._rows = rows

    def send(self, work: Work) -> float:
        lines = [[event.line for event in part.events] for part in work.dealt(self._connections)]
        seconds: float = load.measure("127.0.0.1", self._port, Workload(lines, work.unique))["seconds"]
        return seconds

    def stored(self) -> int:
        return rows.count(self._database) - self._rows

    def channel(self, work: Work) -> Channel | None:
        if self._connections == 1:
            return None  # single events are the same in both variants
        return latency.channel(self._port, [event.line for event in work.events])
