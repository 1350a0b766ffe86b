"""This project's server, over four connections and over one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench import load
from bench.peers import rows
from bench.peers.peer import Event, Peer, Running, Send, Work
from bench.peers.wire import Connection
from bench.process import Server
from bench.workload import Workload


def peers() -> list[Peer]:
    return [
        Peer(f"ours ({name})", "fsynced before the ack; exact for ever", True, partial(_start, connections))
        for name, connections in (("4 connections", 4), ("1 connection", 1))
    ]


@contextmanager
def _start(connections: int, folder: Path) -> Iterator[Running]:
    with Server(folder) as server:
        yield _Ours(server.port, folder / "events.db", connections)


class _Ours(Running):
    def __init__(self, port: int, database: Path, connections: int) -> None:
        self._port = port
        self._database = database
        self._connections = connections

    def send(self, work: Work) -> float:
        lines = [[event.line for event in part.events] for part in work.dealt(self._connections)]
        seconds: float = load.measure("127.0.0.1", self._port, Workload(lines, work.unique))["seconds"]
        return seconds

    def stored(self) -> int:
        return rows.count(self._database)

    def connect(self) -> Send | None:
        if self._connections == 1:
            return None  # single events are the same in each variant
        connection = Connection(self._port)

        def send(event: Event) -> None:
            connection.socket.sendall(event.line)
            if not (reply := connection.line()).startswith((b'{"status":"stored"', b'{"status":"duplicate"')):
                raise RuntimeError(reply.decode())

        return send
