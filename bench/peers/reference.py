"""The reference system as a peer: single events, and batches of 100, over four keep-alive connections."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from bench.peers import rows
from bench.peers.daemon import free_port, installed, running
from bench.peers.peer import Event, Peer, Running, Work
from bench.peers.wire import Connection

CONNECTIONS: Final = 4
BATCH: Final = 100
SHARE: Final = 50


def peers() -> list[Peer]:
    guarantee = "acked before it is stored: what is in the queue may be lost; exact for ever; timed until all is stored"
    return [
        Peer("reference (single events)", guarantee, False, partial(_start, 1), SHARE),
        Peer(f"reference (batches of {BATCH})", guarantee, False, partial(_start, BATCH), SHARE),
    ]


@contextmanager
def _start(batch: int, folder: Path) -> Iterator[Running]:
    versions = installed("fastapi", "pydantic", "uvicorn", "httptools")
    port, database = free_port(), folder / "events.db"
    command = [sys.executable, "-m", "bench.peers.reference_app", f"{port}", f"{database}"]
    with running(command, folder / "reference.log", port):
        yield _Reference(port, database, batch, versions)


class _Reference(Running):
    def __init__(self, port: int, database: Path, batch: int, versions: dict[str, str]) -> None:
        self._port = port
        self._database = database
        self._batch = batch
        self._versions = versions

    def send(self, work: Work) -> float:
        requests = [[_request(batch) for batch in part.batches(self._batch)] for part in work.dealt(CONNECTIONS)]
        connections = [Connection(self._port) for _ in requests]
        unique = work.unique
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            started = time.perf_counter()
            list(threads.map(_send_all, connections, requests))
        rows.wait_for(self._database, unique)
        seconds = time.perf_counter() - started
        for connection in connections:
            connection.close()
        return seconds

    def stored(self) -> int:
        return rows.count(self._database)

    def versions(self) -> dict[str, str]:
        return self._versions


def _request(events: list[Event]) -> bytes:
    body = b",".join([event.line[:-1] for event in events])
    if len(events) > 1:
        body = b"[%b]" % body
    head = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def _send_all(connection: Connection, requests: list[bytes]) -> None:
    """Send one request after the other: an HTTP client waits for the response."""
    for request in requests:
        connection.socket.sendall(request)
        status, length = connection.line(), 0
        while header := connection.line():
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        body = connection.exactly(length)
        if b" 200 " not in status:
            raise RuntimeError(f"{status.decode()}: {body.decode()}")
