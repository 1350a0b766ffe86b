"""NATS: JetStream on disk, pushed without acks; and core, which stores nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import orjson

from bench.channel import Channel, SocketChannel
from bench.peers.daemon import free_port, running
from bench.peers.nats import ACK, STREAM, program
from bench.peers.wire import Connection
from bench.subscribe.system import Caught, System, topic
from bench.subscribe.tally import Tally

CHUNK: Final = 500
WINDOW: Final = 10_000

PENDING_BYTES: Final = 1 << 30
"""How much may wait for one reader before it is cut off (64 MiB by default): enough that none is cut off here."""

_CONNECT: Final = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n'
_CONNECT_VERBOSE: Final = b'CONNECT {"verbose":true,"pedantic":false}\r\n'

_CONSUMER: Final = {
    "stream_name": "events",
    "config": {"deliver_subject": "deliver", "deliver_policy": "all", "ack_policy": "none", "replay_policy": "instant"},
}


class Nats(System):
    mark = b'{"topic":"'
    greeting = _CONNECT + b"SUB events.> 1\r\nPING\r\n"
    ready = b"PONG\r\n"

    def versions(self) -> dict[str, str]:
        return {"nats-server": str(orjson.loads(Connection(self.port).line().removeprefix(b"INFO "))["version"])}

    def fill(self, lines: list[bytes]) -> None:
        connection = self._connection(b"SUB answer 1\r\n")
        connection.socket.sendall(_published(b"$JS.API.STREAM.CREATE.events", orjson.dumps(STREAM), b"answer"))
        connection.line()
        if b'"error"' in (created := connection.line()):
            raise RuntimeError(created.decode())
        pages = [lines[first : first + CHUNK] for first in range(0, len(lines), CHUNK)]
        pieces = [
            b"".join([_published(b"events." + topic(line), line[:-1], b"answer") for line in page]) for page in pages
        ]
        connection.pipeline(pieces, list(map(len, pages)), ACK, WINDOW)
        connection.close()

    def catch_up(self, expected: int) -> Caught:
        tally = Tally(self.mark)
        connection = self._connection(b"SUB answer 1\r\nSUB deliver 2\r\n")
        started = time.perf_counter()
        connection.socket.sendall(_published(b"$JS.API.CONSUMER.CREATE.events", orjson.dumps(_CONSUMER), b"answer"))
        tally.read_until(connection.socket, lambda: tally.events >= expected and tally.last.endswith(b"}\r\n"))
        seconds = time.perf_counter() - started
        connection.close()
        return Caught(seconds, tally.events, tally.events == expected)

    def channel(self, lines: list[bytes]) -> Channel:
        # A verbose server says +OK to each line, which is as near to an ack as a server comes that stores nothing.
        connection = Connection(self.port)
        connection.line()
        connection.socket.sendall(_CONNECT_VERBOSE)
        if (reply := connection.line()) != b"+OK":
            raise RuntimeError(reply.decode())
        published = [_published(b"events." + topic(line), line[:-1]) for line in lines]
        return SocketChannel(connection.socket, published, b"+OK")

    def _connection(self, subscriptions: bytes) -> Connection:
        connection = Connection(self.port)
        connection.line()
        connection.socket.sendall(_CONNECT + subscriptions + b"PING\r\n")
        if (pong := connection.line()) != b"PONG":
            raise RuntimeError(pong.decode())
        return connection


def _published(subject: bytes, body: bytes, reply: bytes = b"") -> bytes:
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(body), body)


@contextmanager
def start(folder: Path) -> Iterator[Nats]:
    """A server with JetStream on disk, and its own default for the fsync: two minutes."""
    executable, port = program(), free_port()
    configuration = folder / "nats.conf"
    configuration.write_text(
        f'listen: "127.0.0.1:{port}"\nmax_pending: {PENDING_BYTES}\njetstream {{ store_dir: "{folder}/nats" }}\n'
    )
    with running([f"{executable}", "-c", f"{configuration}"], folder / "nats.log", port) as process:
        yield Nats(process.pid, port)
