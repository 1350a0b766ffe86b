"""Listeners, and the registry of their connections: which clients are accepted, and which are refused at a limit."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import select
import socket
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, cast

from aggregator.server import credentials, sockets
from aggregator.server.admission import Holder, Slot
from aggregator.server.authenticated_peer import AuthenticatedPeer
from aggregator.server.connection import Connection
from aggregator.server.credentials import Credentials
from aggregator.server.peer import Peer
from aggregator.server.port import FORWARD, WRAP, Port
from aggregator.server.sockets import Bound, CannotListen
from aggregator.server.state import State
from aggregator.server.tls import TlsLayer
from aggregator.server.tls_context import Contexts
from aggregator.server.tls_handshake import TlsHandshake
from aggregator.server.tls_transport import TlsTransport
from aggregator.server.tls_turns import TlsTurns
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
"""How long a client over the connection cap is waited for after our half of the close, so that it can read why. At most
half of the spare descriptors wait for that at a time."""

EMPTY_BACKLOG_S: Final = 0.5
"""How long a stopping server accepts clients that have connected already; thousands a second are no trouble."""

RECONNECTS_AT_ONCE: Final = 8
RECONNECT_PAUSE_S: Final = 0.1
"""How many clients are made to connect again at a time, and the pause before the next ones. The number is half of the
handshakes that one address may have at a time."""

KEEPALIVE_IDLE_S: Final = 60
KEEPALIVE_INTERVAL_S: Final = 15
KEEPALIVE_PROBES: Final = 4
"""A peer that vanished without a word is noticed after 60 + 4 x 15 s. There is no idle timeout, because shippers are
silent for hours."""


class Client(Holder, Protocol):
    """What has a slot: a peer or, until its handshake is over, the handshake."""

    def admit(self, slot: Slot) -> None:
        """Take this slot."""

    def tick(self) -> None:
        """Called every ``peer.TICK_S``."""

    def shut_down(self, failure: Failure) -> None:
        """End: the server is stopping, or its store has failed."""


class Listeners:
    """The listeners of one server and the connections that they have accepted."""

    def __init__(self, state: State, contexts: Contexts | None = None) -> None:
        self._state = state
        self._contexts = contexts  # None: no port speaks TLS
        self._turns = TlsTurns()
        self._listeners: list[asyncio.Server] = []
        self._backlogs: list[socket.socket] = []  # sockets whose backlogs end with this process
        self._files: list[sockets.SocketFile] = []
        self._connections: dict[Client, Slot] = {}
        self._refused: set[Client] = set()
        self._nobody_left = asyncio.Event()
        self._stopping: Failure | None = None

    async def listen(self, port: Port, bound: Bound) -> None:
        """Accept clients at sockets that are bound. Raises CannotListen."""
        if not bound.lives_on:
            self._backlogs += bound.sockets
        if bound.file:
            self._files.append(bound.file)
        for one in bound.sockets:
            try:
                one.listen(BACKLOG)  # uvloop would log an error, and go on
            except OSError as error:  # another process has begun to listen since the socket was bound
                raise CannotListen(sockets.name(one), port.option, error) from error
            self._listeners.append(await asyncio.start_server(partial(self._accept, port), sock=one, backlog=BACKLOG))

    def tick(self) -> None:
        """Called every ``peer.TICK_S``."""
        self._state.admission.tick()
        for connection in list(self._connections):
            connection.tick()

    # --- accepting

    def _accept(self, port: Port, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        self._state.stats.connections_total += 1
        late = self._stopping and not port.replies  # accepted as the listener closed: its events count like the others'
        origin = _origin(credentials.of(transport))
        failure = None if late else self._stopping or self._state.admission.why_not(origin)
        client = self._make_client(port, writer)
        if failure:
            log.debug("a client from %s was refused: %s", origin, failure.detail)
            self._refuse(client, port, failure)
            return
        self._connections[client] = slot = self._state.admission.enter(origin, client)
        client.admit(slot)
        if late and self._stopping:
            asyncio.get_running_loop().call_soon(client.shut_down, self._stopping)
        self._state.stats.connections = len(self._connections)
        _keep_alive(transport.get_extra_info("socket"))

    def _make_client(self, port: Port, writer: asyncio.StreamWriter) -> AuthenticatedPeer | TlsHandshake:
        connection = _class_for(port)(self._state, port, self._ended, writer)
        transport = cast(asyncio.Transport, writer.transport)
        if not port.tls:
            transport.set_protocol(connection)
            connection.connection_made(transport)
            return connection
        assert self._contexts
        handshake = TlsHandshake(self._state, port, transport, partial(self._opened, connection), self._ended)
        TlsLayer(transport, connection, partial(self._contexts.of, port), port, self._turns, handshake)
        return handshake

    def _opened(self, connection: AuthenticatedPeer, handshake: TlsHandshake, transport: TlsTransport) -> None:
        """A handshake has succeeded: its connection takes over the slot."""
        slot = self._connections.pop(handshake)
        self._connections[connection] = slot
        slot.holder = connection
        connection.connection_made(transport)
        connection.admit(slot)
        if self._stopping:
            asyncio.get_running_loop().call_soon(connection.shut_down, self._stopping)

    def _refuse(self, client: AuthenticatedPeer | TlsHandshake, port: Port, failure: Failure) -> None:
        self._state.stats.connections_refused += 1
        if not self._stopping:
            self._state.peer_log.say(logging.WARNING, "a client was refused: %s", failure.detail)
        # A TLS client could be told only after a handshake, which costs more than serving the client.
        if isinstance(client, TlsHandshake) or not port.replies or len(self._refused) >= SPARE_DESCRIPTORS // 2:
            client.abort()
            return
        self._refused.add(client)
        client.refuse(replies.encode(replies.error(failure)), BUSY_LINGER_S)

    def _ended(self, ended: Peer | TlsHandshake) -> None:
        client = cast(Client, ended)  # each peer here is an AuthenticatedPeer, which can have a slot
        self._refused.discard(client)
        if slot := self._connections.pop(client, None):
            self._state.admission.leave(slot)
        self._state.stats.connections = len(self._connections)
        if not self._connections:
            self._nobody_left.set()

    def verify_again(self) -> None:
        """Make clients that have shown a certificate show it again: other authorities or revocation lists are in force.

        The clients are sent away a few at a time, because clients that come back together push each other out.
        """
        shown = deque[AuthenticatedPeer]()
        for client in list(self._connections):
            if not isinstance(client, AuthenticatedPeer):  # its handshake uses the old ones
                client.abort()
            elif client.credentials.certificate:
                shown.append(client)
        self._send_away(shown)

    def _send_away(self, clients: deque[AuthenticatedPeer]) -> None:
        for _ in range(min(RECONNECTS_AT_ONCE, len(clients))):
            client = clients.popleft()
            try:
                client.reconnect(replies.other_authorities())
            except Exception:  # a defect of ours: the other clients have to show their certificates all the same
                log.exception("a client that has shown a certificate is dropped")
                client.abort()
        if clients:
            asyncio.get_running_loop().call_later(RECONNECT_PAUSE_S, self._send_away, clients)

    # --- stopping

    async def empty_backlog(self) -> None:
        """Accept clients that have connected already, because a listener that closes resets its backlog.

        Clients of a socket that lives on wait for the next server.
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
        """Stop accepting, and end every connection; ``failure`` is the answer to clients that go on sending.

        Silent clients get our half of the close and are read to their end; the others get their replies first.
        """
        self._stopping = failure
        # Not wait_closed(): in Python 3.12 it also waits for connections, and those are not ours to wait for any more.
        for listener in self._listeners:
            listener.close()
        for file in self._files:
            file.remove()
        for connection in list(self._connections):
            connection.shut_down(failure)

    def abort(self) -> int:
        """Drop the connections that are left; return how many there were."""
        left = list(self._connections)
        for connection in left:
            connection.abort()
        return len(left)

    async def all_gone(self, timeout_s: float, unless: asyncio.Task[None] | None = None) -> None:
        """Wait until no connection is left, or ``unless`` has ended: after that nothing that is read is stored."""
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


def _origin(client: Credentials) -> str:
    """What counts as one address: an IPv4 address; the network half of an IPv6 address, because each host has 2^64
    addresses of its own; or the user on a unix socket."""
    if client.uid is not None:
        return f"uid {client.uid}"
    if client.is_unix:
        return "an unknown user"
    host = client.address or "an unknown address"  # it may be gone already
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
