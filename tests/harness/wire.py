"""The wire protocol as a test speaks it: bytes out, lines in."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from types import TracebackType
from typing import Any

Json = Any

TIMEOUT_S = 60.0
"""Longer than anything takes on a busy machine: a server that hangs fails the test with a clear traceback."""


def event(event_id: str, topic: str = "t", payload: str = "{}", **fields: str) -> bytes:
    """One event line. ``payload`` and the further fields are JSON text, so that a test decides every byte."""
    more = "".join(f',"{name}":{value}' for name, value in fields.items())
    return (
        f'{{"topic":{json.dumps(topic)},"event_id":{json.dumps(event_id)},"timestamp":"2026-11-22T10:00:00Z",'
        f'"source":"test","payload":{payload}{more}}}\n'
    ).encode()


def events(prefix: str, count: int, topic: str = "t") -> list[bytes]:
    """Lines of ``count`` events with ids ``prefix-0`` …"""
    return [event(f"{prefix}-{i}", topic, f'{{"n":{i}}}') for i in range(count)]


def free_port() -> int:
    """A port that no process uses. It is below those that the kernel gives out by itself, so it stays free for a while:
    no client's connection takes it before a server does, or while its server is restarted."""
    while True:
        port = random.SystemRandom().randrange(12_000, 30_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


class Peer:
    """One connection to a server, seen from the client's side."""

    def __init__(
        self, port: int, *, host: str = "127.0.0.1", source: str = "", receive_buffer: int | None = None
    ) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_S)
        if source:
            self.socket.bind((source, 0))
        try:
            self.socket.connect((host, port))
        except OSError:
            self.socket.close()
            raise
        self._replies = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        """The next reply line, byte for byte."""
        line = self._replies.readline()
        assert line.endswith(b"\n"), f"the connection ended with {line!r}"
        return line

    def raw_line(self) -> bytes:
        """The next line, byte for byte, even if the connection ends within it; empty at the end."""
        return self._replies.readline()

    def reply(self) -> Json:
        return json.loads(self.line())

    def replies(self, count: int) -> list[Json]:
        return [self.reply() for _ in range(count)]

    def ask(self, line: bytes) -> Json:
        self.send(line)
        return self.reply()

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def rest(self) -> list[Json]:
        """All replies until the server closes."""
        return [json.loads(line) for line in self._replies]

    def raw_rest(self) -> bytes:
        return self._replies.read()

    def stop_reading(self) -> None:
        """Let a thread that is reading see an end of the stream, without telling the server."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RD)

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def close(self) -> None:
        self._replies.close()
        self.socket.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def exchange(port: int, data: bytes) -> list[Json]:
    """Send everything, close our half, return every reply: what ``nc -N`` does."""
    with Peer(port) as peer:
        peer.send(data)
        peer.half_close()
        return peer.rest()
