"""Redis: each event goes into a stream unless its key is in a set kept for ever; one script call for each batch.

The script makes it exact: key and event go into the append-only file as one transaction. Requests are written in
Redis's own protocol, which takes only a few lines for what is needed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from bench.channel import Channel, SocketChannel
from bench.peers.daemon import free_port, libraries, running, unpacked
from bench.peers.peer import Event, Peer, Running, Work
from bench.peers.wire import Connection

BATCH: Final = 1000
WINDOW: Final = 4
"""How many batches may be unanswered, so that the server has the next one when it has finished one."""

SCRIPT: Final = b"""
local stored = 0
for at = 1, #ARGV, 3 do
    if redis.call('SADD', 'seen:' .. ARGV[at], ARGV[at + 1]) == 1 then
        redis.call('XADD', 'events', '*', 'event', ARGV[at + 2])
        stored = stored + 1
    end
end
return stored
"""


def peers() -> list[Peer]:
    return [
        Peer(
            "redis (appendfsync always)",
            "fsynced before the ack; exact for ever, as long as all keys fit in memory",
            True,
            partial(_start, "always"),
        ),
        Peer(
            "redis (appendfsync everysec)",
            "acked before the fsync: a second may be lost; exact for ever, as long as all keys fit in memory",
            False,
            partial(_start, "everysec"),
        ),
    ]


@contextmanager
def _start(fsync: str, folder: Path) -> Iterator[Running]:
    package, port = unpacked("redis-server"), free_port()
    command = [
        f"{package}/usr/bin/redis-server", "--bind", "127.0.0.1", "--port", f"{port}", "--dir", f"{folder}",
        "--save", "", "--appendonly", "yes", "--appendfsync", fsync,
    ]  # fmt: skip
    with running(command, folder / "redis.log", port, env=libraries(package)):
        yield _Redis(port)


class _Redis(Running):
    def __init__(self, port: int) -> None:
        self._port = port
        self._control = Connection(port)
        self._control.socket.sendall(encoded([b"SCRIPT", b"LOAD", SCRIPT]))
        self._control.line()  # the length of the digest
        self._sha = self._control.line()

    def send(self, work: Work) -> float:
        calls = [self._call(batch) for batch in work.batches(BATCH)]
        return Connection(self._port).pipeline(calls, [1] * len(calls), b"\r\n", WINDOW)

    def stored(self) -> int:
        self._control.socket.sendall(encoded([b"XLEN", b"events"]))
        return int(self._control.line().removeprefix(b":"))

    def channel(self, work: Work) -> Channel:
        # The reply is an integer, which begins with a colon; an error has no colon at its beginning.
        return SocketChannel(Connection(self._port).socket, [self._call([event]) for event in work.events], b":")

    def versions(self) -> dict[str, str]:
        self._control.socket.sendall(encoded([b"INFO", b"server"]))
        info = self._control.exactly(int(self._control.line().removeprefix(b"$")) + 2).decode()
        return {"redis": info.partition("redis_version:")[2].split()[0]}

    def _call(self, events: list[Event]) -> bytes:
        arguments = [b"EVALSHA", self._sha, b"0"]
        for event in events:
            arguments += (event.topic, event.event_id, event.line[:-1])
        return encoded(arguments)


def encoded(arguments: list[bytes]) -> bytes:
    """A command in Redis's protocol."""
    return b"*%d\r\n%b" % (len(arguments), b"".join([b"$%d\r\n%b\r\n" % (len(one), one) for one in arguments]))
