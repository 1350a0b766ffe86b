"""A connection that sends its events when told to and counts their acks. It never waits for either."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

READ_BYTES: Final = 1 << 18


class Channel(ABC):
    """One connection with the events to send over it, in order and already in the server's own form."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.left: list[float] = []
        """When each event that has been sent was sent."""
        self.acked: list[float] = []
        """When each ack was read; acks come in the order of the events."""

    @abstractmethod
    def fileno(self) -> int:
        """The file descriptor to wait for."""

    @property
    @abstractmethod
    def unsent(self) -> bool:
        """Whether sent bytes wait here for room in the kernel's buffer."""

    @abstractmethod
    def send(self, start: int, end: int) -> None:
        """Send the events at these places."""

    @abstractmethod
    def flush(self) -> None:
        """Send the waiting bytes, as far as there is room."""

    @abstractmethod
    def receive(self) -> int:
        """Read what has arrived; return how many acks it completes. Raises ConnectionError at the end of the stream."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


class SocketChannel(Channel):
    """Sends events as bytes over a socket; ``mark`` occurs exactly once in each ack, and never in any other reply."""

    def __init__(self, connection: socket.socket, events: Sequence[bytes], mark: bytes) -> None:
        super().__init__(len(events))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._socket = connection
        self._events = events
        self._marks = Marks(mark)
        self._unsent = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def unsent(self) -> bool:
        return bool(self._unsent)

    def send(self, start: int, end: int) -> None:
        self._unsent += b"".join(self._events[start:end])
        self.flush()

    def flush(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return

    def receive(self) -> int:
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        return self._marks.count(data)

    def close(self) -> None:
        self._socket.close()


class Marks:
    """Counts how often a mark occurs in a stream of bytes, however the stream is cut."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._rest = b""

    def count(self, data: bytes) -> int:
        data = self._rest + data
        # The end may be the beginning of a mark. Bytes that belong to a counted mark are not looked at again.
        counted = data.rfind(self._mark) + len(self._mark) if self._mark in data else 0
        self._rest = data[max(counted, len(data) - len(self._mark) + 1) :]
        return data.count(self._mark)
