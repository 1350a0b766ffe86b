"""The obvious asyncio server as a peer, over four connections."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.peers import rows
from bench.peers.daemon import free_port, running
from bench.peers.peer import Peer, Running, Work
from bench.peers.wire import Connection

CONNECTIONS: Final = 4
CHUNK: Final = 250
WINDOW: Final = 5000
"""How many replies may be unread on one connection: so many fit into the socket's buffers."""


def peers() -> list[Peer]:
    return [
        Peer(
            "obvious",
            "acked before it is stored: what is in the queue may be lost; exact for ever; timed until all is stored",
            False,
            _start,
        )
    ]


@contextmanager
def _start(folder: Path) -> Iterator[Running]:
    port, database = free_port(), folder / "events.db"
    command = [sys.executable, "-m", "bench.peers.obvious_server", f"{port}", f"{database}"]
    with running(command, folder / "obvious.log", port):
        yield _Obvious(port, database)


class _Obvious(Running):
    def __init__(self, port: int, database: Path) -> None:
        self._port = port
        self._database = database

    def send(self, work: Work) -> float:
        parts = [list(part.batches(CHUNK)) for part in work.dealt(CONNECTIONS)]
        pieces = [[b"".join([event.line for event in batch]) for batch in part] for part in parts]
        replies = [[len(batch) for batch in part] for part in parts]
        unique = work.unique
        connections = [Connection(self._port) for _ in parts]
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            started = time.perf_counter()
            list(threads.map(Connection.pipeline, connections, pieces, replies, [b"\n"] * CONNECTIONS, [WINDOW] * 4))
        rows.wait_for(self._database, unique)
        seconds = time.perf_counter() - started
        for connection in connections:
            connection.close()
        return seconds

    def stored(self) -> int:
        return rows.count(self._database)
