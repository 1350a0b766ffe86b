"""Listeners, and the registry of their connections: who is accepted, and who is refused at which limit."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import select
import socket
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

from aggregator import address
from aggregator.server.connection import Connection
from aggregator.server.peer import Peer
from aggregator.server.port import FORWARD, WRAP, Port
from aggregator.server.sockets import Bound, CannotListen
from aggregator.server.state import State
from aggregator.server.wrap import WrapConnection
from aggregator.wire import Failure, replies

if TYPE_CHECKING:
    from aggregator.server.forward import ForwardConnection

log = logging.getLogger("aggregator")

SPARE_DESCRIPTORS: Final = 32
"""Descriptors needed besides the connections: database, WAL, shared memory, lock, listeners, event loop, logs."""

BACKLOG: Final = 1024
"""Connections the kernel completes before we accept them; shippers come back all at once after a restart."""

BUSY_LINGER_S: Final = 0.1
"""How long a client over the connection cap is waited for after our half of the close, so that it can read why; half of
the spare descriptors may wait for that at a time."""

EMPTY_BACKLOG_S: Final = 0.5
"""How long a stopping server accepts clients that have connected already; thousands a second are no trouble."""

KEEPALIVE_IDLE_S: Final = 60
KEEPALIVE_INTERVAL_S: Final = 15
KEEPALIVE_PROBES: Final = 4
"""A peer that vanished without a word is noticed after 60 + 4 x 15 s. Shippers are silent for hours: there is no idle
timeout."""


class Listeners:
    """The listeners of one server and the connections that they have accepted."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._listeners: list[asyncio.Server] = []
        self._backlogs: list[socket.socket] = []  # those that end with this process
        self._connections: dict[Peer, str] = {}  # and where each comes from
        self._origins: Counter[str] = Counter()
        self._refused: set[Peer] = set()
        self._nobody_left = asyncio.Event()
        self._stopping: Failure | None = None

    async def listen(self, port: Port, bound: Bound) -> None:
        """Accept clients at sockets that are bound. Raises CannotListen."""
        if not bound.lives_on:
            self._backlogs += bound.sockets
        for one in bound.sockets:
            try:
                one.listen(BACKLOG)  # uvloop would log an error, and go on
            except OSError as error:  # another process has begun to listen since the socket was bound
                host, number = one.getsockname()[:2]
                raise CannotListen(host, number, port.option, error) from error
            self._listeners.append(await asyncio.start_server(partial(self._accept, port), sock=one, backlog=BACKLOG))

    def tick(self) -> None:
        """``peer.TICK_S`` have passed."""
        for connection in list(self._connections):
            connection.tick()

    # --- accepting

    def _accept(self, port: Port, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        connection = _class_for(port)(self._state, port, self._ended, writer)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        self._state.stats.connections_total += 1
        late = self._stopping and not port.replies  # accepted as the listener closed: its events count like the others'
        origin = _origin(transport.get_extra_info("peername"))
        if (failure := self._why_not(origin)) and not late:
            log.debug("a client from %s was refused: %s", origin, failure.detail)
            self._refuse(connection, port, failure)
            return
        self._connections[connection] = origin
        self._origins[origin] += 1
        if late and self._stopping:
            asyncio.get_running_loop().call_soon(connection.shut_down, self._stopping)
        self._state.stats.connections = len(self._connections)
        _keep_alive(transport.get_extra_info("socket"))

    def _why_not(self, origin: str) -> Failure | None:
        """Why another client from there is not served."""
        config = self._state.config
        if self._stopping:
            return self._stopping
        if len(self._connections) >= config.max_connections:
            return replies.too_many_connections(config.max_connections)
        if self._origins[origin] >= config.address_connections:
            return replies.too_many_connections(config.address_connections, origin)
        return None

    def _refuse(self, connection: Peer, port: Port, failure: Failure) -> None:
        self._state.stats.connections_refused += 1
        if not self._stopping:
            self._state.peer_log.say(logging.WARNING, "a client was refused: %s", failure.detail)
        if not port.replies or len(self._refused) >= SPARE_DESCRIPTORS // 2:
            connection.abort()
            return
        self._refused.add(connection)
        connection.refuse(replies.encode(replies.error(failure)), BUSY_LINGER_S)

    def _ended(self, connection: Peer) -> None:
        self._refused.discard(connection)
        if origin := self._connections.pop(connection, None):
            self._origins[origin] -= 1
            if not self._origins[origin]:
                del self._origins[origin]  # or it would grow with every address ever seen
        self._state.stats.connections = len(self._connections)
        if not self._connections:
            self._nobody_left.set()

    # --- stopping

    async def empty_backlog(self) -> None:
        """Accept clients that have connected already: a listener that closes resets its backlog.

        Those of a socket that lives on wait for the next server.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EMPTY_BACKLOG_S):
                while self._somebody_waits():  # noqa: ASYNC110 (a backlog has no event)
                    await asyncio.sleep(0)

    def _somebody_waits(self) -> bool:
        poll = select.poll()
        for one in self._backlogs:
            poll.register(one.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def stop(self, failure: Failure) -> None:
        """Accept nobody any more, and end every connection; ``failure`` is told to clients that go on sending.

        Silent clients get our half of the close and are read to their end; the others get their replies first.
        """
        self._stopping = failure
        # Not wait_closed(): Python 3.12 waits there for connections that are not ours to wait for any more.
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.shut_down(failure)

    def abort(self) -> int:
        """Drop the connections that are left; return how many there were."""
        left = list(self._connections)
        for connection in left:
            connection.abort()
        return len(left)

    async def all_gone(self, timeout_s: float, unless: asyncio.Task[None] | None = None) -> None:
        """Wait until no connection is left, or until ``unless`` has ended: nothing that is read is stored then."""
        if self._connections:
            self._nobody_left.clear()
            gone = asyncio.create_task(self._nobody_left.wait())
            await asyncio.wait(
                {gone, unless} if unless else {gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            gone.cancel()


def _class_for(port: Port) -> type[Connection | WrapConnection | ForwardConnection]:
    if port is WRAP:
        return WrapConnection
    if port is FORWARD:
        from aggregator.server.forward import ForwardConnection  # here, because it needs the extra ``forward``

        return ForwardConnection
    return Connection


def _origin(peername: tuple[str, int] | None) -> str:
    """What counts as one address: an IPv4 address, or the half of an IPv6 address that names a network, because each
    host has 2^64 of the other half."""
    host = address.unmapped(peername[0]) if peername else "an unknown address"  # it may be gone already
    if ":" not in host:
        return host
    network = ipaddress.IPv6Address(host.partition("%")[0]).packed[:8]
    return f"{ipaddress.IPv6Address(network + bytes(8))}/64"


def _keep_alive(sock: socket.socket) -> None:
    """Notice a peer that has vanished without a word."""
    with contextlib.suppress(OSError):  # it may be gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
