"""Counts what arrives over a connection: lines, and events by a mark that each has exactly once."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from bench.channel import READ_BYTES, Marks

STALL_S: Final = 60.0
"""If nothing arrives for so long, the server hangs and its run has failed."""


class Tally:
    """Counts for one connection, however its stream is cut."""

    def __init__(self, mark: bytes) -> None:
        self.events = 0
        self.lines = 0
        self.last = b""
        """The bytes that arrived last."""
        self._marks = Marks(mark)

    def add(self, data: bytes) -> None:
        """Count what has arrived. Raises ConnectionError at the end of the stream."""
        if not data:
            raise ConnectionError("the server closed a reader's connection")
        self.events += self._marks.count(data)
        self.lines += data.count(b"\n")
        self.last = data

    def read_until(self, connection: socket.socket, done: Callable[[], bool]) -> None:
        """Read and count until ``done``."""
        connection.settimeout(STALL_S)
        while not done():
            self.add(connection.recv(READ_BYTES))
