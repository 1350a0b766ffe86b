"""Redis: a stream, all of it in memory, read by XREAD 1,000 entries at a time; and pub/sub, which stores nothing."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.channel import Channel, SocketChannel
from bench.peers.daemon import free_port, libraries, running, unpacked
from bench.peers.redis import encoded
from bench.peers.wire import Connection
from bench.subscribe.system import Caught, System
from bench.subscribe.tally import STALL_S, Tally

PAGE: Final = 1000
WINDOW: Final = 10_000

_ENTRY: Final = re.compile(rb"\r\n(\d+-\d+)\r\n\*2\r\n\$5\r\nevent\r\n")
_TAIL_BYTES: Final = 4096
"""More than the length of a page's last entry."""


class Redis(System):
    mark = b'{"topic":"'
    greeting = encoded([b"SUBSCRIBE", b"events"])
    ready = b":1\r\n"

    def versions(self) -> dict[str, str]:
        connection = Connection(self.port)
        connection.socket.sendall(encoded([b"INFO", b"server"]))
        info = connection.exactly(int(connection.line().removeprefix(b"$")) + 2).decode()
        return {"redis": info.partition("redis_version:")[2].split()[0]}

    def fill(self, lines: list[bytes]) -> None:
        pages = [lines[first : first + PAGE] for first in range(0, len(lines), PAGE)]
        pieces = [
            b"".join([encoded([b"XADD", b"events", b"*", b"event", line[:-1]]) for line in page]) for page in pages
        ]
        Connection(self.port).pipeline(pieces, list(map(len, pages)), b"$", WINDOW)

    def catch_up(self, expected: int) -> Caught:
        tally, newest = Tally(self.mark), b"0"
        with socket.create_connection(("127.0.0.1", self.port), STALL_S) as connection:
            started = time.perf_counter()
            while tally.events < expected:
                connection.sendall(encoded([b"XREAD", b"COUNT", b"%d" % PAGE, b"STREAMS", b"events", newest]))
                newest = _page(connection, tally, min(expected, tally.events + PAGE))
            seconds = time.perf_counter() - started
            connection.sendall(encoded([b"XREAD", b"COUNT", b"1", b"STREAMS", b"events", newest]))
            nothing_left = connection.recv(16) == b"*-1\r\n"
        return Caught(seconds, tally.events, nothing_left and tally.events == expected)

    def channel(self, lines: list[bytes]) -> Channel:
        # The reply is the number of readers, which begins with a colon.
        published = [encoded([b"PUBLISH", b"events", line[:-1]]) for line in lines]
        return SocketChannel(Connection(self.port).socket, published, b":")


def _page(connection: socket.socket, tally: Tally, until: int) -> bytes:
    """Read a page; return the id of its last entry."""
    tail = b""

    def complete() -> bool:
        nonlocal tail
        tail = (tail + tally.last)[-_TAIL_BYTES:]
        return tally.events == until and tail.endswith(b"}\r\n")

    tally.last = b""
    tally.read_until(connection, complete)
    return bytes(_ENTRY.findall(tail)[-1])


@contextmanager
def start(folder: Path) -> Iterator[Redis]:
    """A server that appends to its file, which is fsynced once a second."""
    package, port = unpacked("redis-server"), free_port()
    arguments = [
        f"{package}/usr/bin/redis-server", "--bind", "127.0.0.1", "--port", f"{port}", "--dir", f"{folder}",
        "--save", "", "--appendonly", "yes", "--appendfsync", "everysec",
    ]  # fmt: skip
    with running(arguments, folder / "redis.log", port, env=libraries(package)) as process:
        yield Redis(process.pid, port)
