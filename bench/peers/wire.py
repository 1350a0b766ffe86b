"""A connection that sends prepared bytes, with a limit on unanswered ones, and counts the replies."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from typing import Final

from bench.channel import READ_BYTES, Marks

STALL_S: Final = 60.0
"""Without progress for so long, the peer hangs and its run has failed."""


class Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), STALL_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # single events must not wait for an ACK
        self._rest = b""

    def close(self) -> None:
        self.socket.close()

    def line(self) -> bytes:
        """The next line, without its end."""
        while b"\n" not in self._rest:
            self._rest += self._receive()
        line, _, self._rest = self._rest.partition(b"\n")
        return line.removesuffix(b"\r")

    def exactly(self, count: int) -> bytes:
        while len(self._rest) < count:
            self._rest += self._receive()
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    def pipeline(self, pieces: Sequence[bytes], replies: Sequence[int], mark: bytes, window: int) -> float:
        """Send the pieces with at most ``window`` replies missing at a time, and await all; return the seconds it took.

        ``replies`` is the number of replies to each piece; ``mark`` occurs exactly once in each reply.
        """
        marks, sent, seen = Marks(mark), 0, 0
        started = time.perf_counter()
        for piece, count in zip(pieces, replies, strict=True):
            while sent - seen + count > window and sent > seen:
                seen += marks.count(self._receive())
            self.socket.sendall(piece)
            sent += count
            while select.select([self.socket], [], [], 0)[0]:
                seen += marks.count(self._receive())
        while seen < sent:
            seen += marks.count(self._receive())
        return time.perf_counter() - started

    def _receive(self) -> bytes:
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError("the peer closed the connection")
        return data
