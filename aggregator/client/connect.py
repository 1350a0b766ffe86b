"""From a server's name to a connection: every address that the name has is tried (RFC 8305).

The path of a unix socket may stand in place of a host: a host that begins with ``/`` is a path, and has no port.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from aggregator.address import is_loopback, join, without_brackets
from aggregator.client.reply import reason

STAGGER_S: Final = 0.25
"""How long an address is tried before the next one is tried in parallel; RFC 8305 recommends this time."""

CONNECT_TIMEOUT_S: Final = 10.0
"""For all addresses together. A packet filter that drops packets would make the kernel try for two minutes."""

SocketAddress = tuple[Any, ...]

AnyProtocol = TypeVar("AnyProtocol", bound=asyncio.Protocol)

_Found = tuple[socket.AddressFamily, socket.SocketKind, int, str, SocketAddress]

_Connected = tuple[socket.socket, SocketAddress]


def is_path(host: str) -> bool:
    """Whether this is the path of a unix socket."""
    return host.startswith("/")


def shown(host: str, port: int) -> str:
    """An address as people write it: IPv6 in brackets, a unix socket as ``unix:PATH``."""
    return f"unix:{host}" if is_path(host) else join(without_brackets(host), port)


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is, and how to talk to it."""

    host: str
    """A name, an address, or the path of a unix socket."""
    port: int
    ssl: ssl.SSLContext | None = None
    """If set, the connection uses TLS, and the server's certificate must be for ``host``."""
    token: str | None = field(default=None, repr=False)
    """Authenticates the client. It is sent over TLS, a unix socket or loopback only."""

    @property
    def shown(self) -> str:
        """The server's address as people write it."""
        return shown(self.host, self.port)


class Reached(NamedTuple):
    """A connected socket, the address that it is connected to, and whether the host has others."""

    socket: socket.socket
    address: SocketAddress
    alternatives: bool


async def open_connection(
    server: Server, factory: Callable[[], AnyProtocol], last: SocketAddress | None = None
) -> tuple[Reached, asyncio.Transport, AnyProtocol]:
    """Connect a protocol as ``connect`` does, over TLS if ``server`` says so. Raises OSError."""
    reached = await connect(server.host, server.port, last)
    if server.token and not server.ssl and not _is_local(reached):
        reached.socket.close()
        raise OSError("a token is sent over TLS, unix sockets and loopback only")
    name = without_brackets(server.host) if server.ssl else None
    transport, protocol = await asyncio.get_running_loop().create_connection(
        factory, sock=reached.socket, ssl=server.ssl, server_hostname=name,
        ssl_handshake_timeout=CONNECT_TIMEOUT_S if server.ssl else None,
    )  # fmt: skip
    return reached, transport, protocol


def _is_local(reached: Reached) -> bool:
    return reached.socket.family == socket.AF_UNIX or is_loopback(reached.address[0])


async def connect(host: str, port: int, last: SocketAddress | None = None) -> Reached:
    """Connect to the first address that answers.

    The address ``last`` is tried after all others, because it did not work the last time. Raises OSError. Its text can
    be shown to users, and names every reason if the addresses fail for different reasons.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            found = await _find(without_brackets(host), port)
            found.sort(key=lambda one: one[4] == last)
            sock, address = await _first_to_connect(found)
    except TimeoutError:
        raise ConnectionError("timed out") from None
    return Reached(sock, address, len({one[4] for one in found}) > 1)


async def _find(host: str, port: int) -> list[_Found]:
    if is_path(host):
        return [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", (host,))]
    loop = asyncio.get_running_loop()
    try:
        return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[return-value]
    except UnicodeError as error:  # no host can have this name
        raise OSError(reason(error)) from error


async def _first_to_connect(found: list[_Found]) -> _Connected:
    waiting = list(reversed(found))
    trying: set[asyncio.Task[_Connected]] = set()
    failures: list[str] = []
    try:
        while waiting or trying:
            if waiting:
                trying.add(asyncio.create_task(_connect(waiting.pop())))
            done, trying = await asyncio.wait(
                trying, timeout=STAGGER_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            won = [task.result() for task in done if not task.exception()]
            for loser, _ in won[1:]:
                loser.close()
            if won:
                return won[0]
            failures += [reason(error) for task in done if isinstance(error := task.exception(), OSError)]
        raise OSError("; ".join(dict.fromkeys(failures)) or "no address")
    finally:
        for task in trying:
            task.add_done_callback(_close_late)
            task.cancel()


async def _connect(found: _Found) -> _Connected:
    family, kind, protocol, _, address = found
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address[0] if family == socket.AF_UNIX else address)
    except BaseException:
        sock.close()
        raise
    return sock, address


def _close_late(task: asyncio.Task[_Connected]) -> None:
    """Close a connection that was made in the same moment as the first."""
    with contextlib.suppress(asyncio.CancelledError, OSError):
        task.result()[0].close()
