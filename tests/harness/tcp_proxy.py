"""A TCP proxy on loopback that cuts a connection after any byte in either direction."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Final

CHUNK: Final = 1 << 16
LOOK_S: Final = 0.01
"""How often each direction checks whether its connection was cut: a socket that is being read cannot be reset."""


class How(Enum):
    """What both sides see of a cut."""

    CLOSE = "close"
    RESET = "reset"
    SILENCE = "silence"
    """Nothing: no more bytes come through, and neither side is told, as when a cable is cut."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Let this many bytes through to the server or to the client, counted from the write that contains the marker."""

    to_server: int | None = None
    to_client: int | None = None
    how: How = How.CLOSE


@dataclass(slots=True)
class _Link:
    """One client's connection, and the proxy's connection to the server."""

    client: socket.socket
    server: socket.socket
    marked: bool = False
    is_cut: bool = False
    how: How = How.CLOSE
    pumps: int = 2
    passed: dict[str, int] = field(default_factory=lambda: {"to_server": 0, "to_client": 0})

    @property
    def sockets(self) -> tuple[socket.socket, socket.socket]:
        return self.client, self.server


class TcpProxy:
    """A proxy for one port. Connections pass untouched until ``arm`` has been called; then one is cut, once."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._marker: bytes | None = None
        self._cut = Cut()
        self.happened = threading.Event()
        """Set when the connection is cut."""
        self.passed = {"to_server": 0, "to_client": 0}
        """Bytes since the marker, on the connection that last had the marker."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, marker: bytes, cut: Cut = Cut()) -> None:
        """Watch for a client's write that contains this marker; then cut that connection where ``cut`` says."""
        with self._lock:
            self._marker, self._cut = marker, cut
            self.happened.clear()
            self.passed = {"to_server": 0, "to_client": 0}
            for link in self._links:
                link.marked = False

    def connections(self) -> int:
        """How many connections are open."""
        return len(self._links)

    def break_all(self, how: How = How.RESET) -> None:
        """Cut every connection now."""
        for link in list(self._links):
            self._sever(link, how)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # otherwise the waiting accept() would take one more connection
        self._listener.close()
        self.break_all(How.CLOSE)

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._server_port), 5)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                link = _Link(client, server)
                for one in link.sockets:
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._links.append(link)
                for direction in ("to_server", "to_client"):
                    threading.Thread(target=self._pump, args=(link, direction), daemon=True).start()

    def _pump(self, link: _Link, direction: str) -> None:
        source, target = link.sockets if direction == "to_server" else reversed(link.sockets)
        with contextlib.suppress(OSError):
            while not link.is_cut:
                if not select.select([source], [], [], LOOK_S)[0]:
                    continue
                data = source.recv(CHUNK)
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    break
                passing, cut_here = self._watch(link, direction, data)
                if passing:
                    target.sendall(passing)
                if cut_here:
                    self._sever(link, self._cut.how)
        link.pumps -= 1
        if not link.pumps and link.how is not How.SILENCE:
            self._close(link)

    def _watch(self, link: _Link, direction: str, data: bytes) -> tuple[bytes, bool]:
        """The bytes that pass, and whether the connection is cut after them."""
        with self._lock:
            if link.is_cut:
                return b"", False
            if self._marker and direction == "to_server" and self._marker in data:
                link.marked, self._marker = True, None
                link.passed = self.passed
            if not link.marked:
                return data, False
            limit = getattr(self._cut, direction)
            left = len(data) if limit is None else limit - link.passed[direction]
            if limit is None or len(data) < left:
                link.passed[direction] += len(data)
                return data, False
            link.passed[direction] += left
            return data[:left], True

    def _sever(self, link: _Link, how: How) -> None:
        link.how, link.is_cut = how, True
        if not link.pumps:
            self._close(link)
        self.happened.set()

    def _close(self, link: _Link) -> None:
        for one in link.sockets:
            if link.how is How.RESET:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            one.close()
        with self._lock, contextlib.suppress(ValueError):
            self._links.remove(link)
