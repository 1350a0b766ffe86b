"""Listeners, the registry of connections, signals, and the order of starting and stopping."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import resource
import select
import signal
import socket
import sys
from collections import Counter
from functools import partial
from typing import Any

from aggregator import __version__
from aggregator.admin import View
from aggregator.config import (
    BACKLOG,
    BUSY_LINGER_S,
    EMPTY_BACKLOG_S,
    FAILURE_REPLIES_S,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    KEEPALIVE_PROBES,
    LAST_COMMIT_S,
    SPARE_DESCRIPTORS,
    TICK_S,
    Config,
)
from aggregator.connection import Connection
from aggregator.consumer import Consumer
from aggregator.intake import Failure, Intake
from aggregator.peer_log import PeerLog
from aggregator.stats import Stats
from aggregator.store import Store

log = logging.getLogger("aggregator")


class CannotStart(Exception):
    """The server cannot start; the text says why in one line, for an administrator."""


class Server:
    """One store, its consumer, and the connections of both listeners."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config = config
        self._store = store
        self._stats = Stats()
        self._intake = Intake(config.queue_events, config.queue_bytes)
        self._consumer = Consumer(self._intake, store, self._stats, config.max_batch, config.wal_limit_bytes)
        self._view = View(config, self._stats, self._intake, store)
        self._peer_log = PeerLog()
        self._listeners: list[asyncio.Server] = []
        self._connections: dict[Connection, str] = {}  # and where each comes from
        self._origins: Counter[str] = Counter()
        self._refused: set[Connection] = set()
        self._nobody_left = asyncio.Event()
        self._stopping: Failure | None = None

    async def run(self, stop: asyncio.Event) -> bool:
        """Serve until ``stop`` is set, or until the store fails. Return whether all that was read is stored."""
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        # 1. Listen, so that a port in use is found before anything else happens.
        acked = await self._listen(self._config.port, silent=False)
        silent = "off"
        if self._config.silent_port is not None:
            silent = await self._listen(self._config.silent_port, silent=True)
        # 2. Store what arrives, until told to stop.
        consumer = asyncio.create_task(self._consumer.run())
        log.info(
            "aggregator %s ready: acked port %s, silent port %s, %d events in %s",
            __version__, acked, silent, self._store.stored_total, self._store.path,
        )  # fmt: skip
        self._tick()
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({consumer, stopped}, return_when=asyncio.FIRST_COMPLETED)
        # 3. Stop, in either case.
        if consumer.done():
            stopped.cancel()
            await self._fail(consumer)
            return False
        return await self._drain(consumer)

    async def _listen(self, port: int, silent: bool) -> str:
        """Open a listener; return the addresses it is bound to, as ``host:port``."""
        try:
            listener = await asyncio.start_server(
                partial(self._accept, silent), self._config.host, port, backlog=BACKLOG
            )
        except (OSError, UnicodeError) as error:  # a host's name that is unknown or none, a port in use, forbidden …
            reason = None
            if isinstance(error, OSError):
                reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise CannotStart(f"cannot listen on {self._config.host}:{port}: {reason or error}") from error
        self._listeners.append(listener)
        return " and ".join("{}:{}".format(*one.getsockname()[:2]) for one in listener.sockets)

    def _accept(self, silent: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        connection = Connection(self._view, self._peer_log, silent, self._ended, writer)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        self._stats.connections_total += 1
        late = self._stopping and silent  # accepted as the listener closed: its events count like the others'
        origin = _origin(transport.get_extra_info("peername"))
        if (failure := self._why_not(origin)) and not late:
            self._refuse(connection, silent, failure)
            return
        self._connections[connection] = origin
        self._origins[origin] += 1
        if late and self._stopping:
            asyncio.get_running_loop().call_soon(connection.shut_down, self._stopping)
        self._stats.connections = len(self._connections)
        _keep_alive(transport.get_extra_info("socket"))

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            # asyncio tries a whole backlog in vain each second, and would log a traceback each time.
            self._peer_log.say(logging.ERROR, "cannot accept clients: %s", error.strerror)
        else:
            loop.default_exception_handler(context)

    def _tick(self) -> None:
        for connection in list(self._connections):
            connection.tick()
        asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _why_not(self, origin: str) -> Failure | None:
        """Why one more client from there is not served."""
        if self._stopping:
            return self._stopping
        if len(self._connections) >= self._config.max_connections:
            return Failure("busy", f"{self._config.max_connections} connections are open; try again later")
        if self._origins[origin] >= self._config.address_connections:
            return Failure(
                "busy", f"{self._config.address_connections} connections from {origin} are open; try again later"
            )
        return None

    def _refuse(self, connection: Connection, silent: bool, failure: Failure) -> None:
        self._stats.connections_refused += 1
        if not self._stopping:
            self._peer_log.say(logging.WARNING, "a client was refused: %s", failure.detail)
        if silent or len(self._refused) >= SPARE_DESCRIPTORS // 2:
            connection.abort()
            return
        self._refused.add(connection)
        connection.refuse(failure, BUSY_LINGER_S)

    def _ended(self, connection: Connection) -> None:
        self._refused.discard(connection)
        if origin := self._connections.pop(connection, None):
            self._origins[origin] -= 1
            if not self._origins[origin]:
                del self._origins[origin]  # or it would grow with every address ever seen
        self._stats.connections = len(self._connections)
        if not self._connections:
            self._nobody_left.set()

    async def _drain(self, consumer: asyncio.Task[None]) -> bool:
        # 1. Accept who has connected already, and then nobody any more: a listener that closes resets its backlog.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EMPTY_BACKLOG_S):
                while self._somebody_waits():  # noqa: ASYNC110 (a backlog has no event)
                    await asyncio.sleep(0)
        self._stopping = Failure("shutting_down", "the server is stopping; send this again with the same id")
        self._close_listeners()
        # 2. Silent clients get our half of the close and are read to their end; the others get their replies first.
        self._shut_down_connections(self._stopping)
        # 3. Wait for them, but not for ever. What was read of those that remain is stored all the same.
        deadline = asyncio.get_running_loop().time() + self._config.drain_timeout_s
        await self._all_gone(self._config.drain_timeout_s, consumer)
        if consumer.done():
            await self._fail(consumer)
            return False
        if self._connections:
            log.warning("%d connections did not end in time", len(self._connections))
            self._abort_connections()
        # 4. Let the consumer store what is queued, in what is left of that time and a little more.
        self._intake.close()
        left_s = max(0.0, deadline - asyncio.get_running_loop().time())
        done, _ = await asyncio.wait({consumer}, timeout=left_s + LAST_COMMIT_S)
        if not done or consumer.exception():
            reason = self._stats.failure or self._stats.trouble or "a commit does not end"
            log.error("stopped: not all that was read could be stored, and none of that was acked: %s", reason)
            return False
        # 5. Close the database; its WAL goes into it.
        await self._store.close()
        log.info("stopped: %d events in %s", self._store.stored_total, self._store.path)
        return True

    async def _fail(self, consumer: asyncio.Task[None]) -> None:
        """The store is broken: no more acks. Tell those who wait, and leave the files to the next start's recovery."""
        log.critical("stopping: the store has failed: %s", self._stats.failure, exc_info=_defect(consumer))
        self._stopping = Failure("storage", f"the store has failed: {self._stats.failure}")
        self._close_listeners()
        self._shut_down_connections(self._stopping)
        await self._all_gone(FAILURE_REPLIES_S)

    def _somebody_waits(self) -> bool:
        """Whether somebody has connected whom the event loop has not accepted yet."""
        poll = select.poll()
        for listener in self._listeners:
            for one in listener.sockets:
                poll.register(one.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _close_listeners(self) -> None:
        # Not wait_closed(): Python 3.12 waits there for connections that are not ours to wait for any more.
        for listener in self._listeners:
            listener.close()

    def _shut_down_connections(self, failure: Failure) -> None:
        for connection in list(self._connections):
            connection.shut_down(failure)

    def _abort_connections(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    async def _all_gone(self, timeout_s: float, consumer: asyncio.Task[None] | None = None) -> None:
        """Wait until no connection is left, or the consumer has ended: then nothing that is read is stored any more."""
        if self._connections:
            self._nobody_left.clear()
            gone = asyncio.create_task(self._nobody_left.wait())
            await asyncio.wait(
                {gone, consumer} if consumer else {gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            gone.cancel()


async def serve(config: Config) -> bool:
    """Run a server; return whether it ended well. Raises CannotStart and StoreUnusable.

    After False the store may still be stuck in a commit: the process has to end by ``os._exit``, for the database's
    threads would keep it alive.
    """
    stop = asyncio.Event()
    _handle_signals(stop)  # before anything else: a process 1 without a handler is not ended by SIGTERM at all
    _allow_descriptors(config.max_connections)
    store = await Store.open(config.db)
    try:
        return await Server(config, store).run(stop)
    except BaseException:
        await store.close()
        raise


def _handle_signals(stop: asyncio.Event) -> None:
    def on_signal(name: str) -> None:
        if stop.is_set():
            log.warning("stopped at once by a second signal; what was not acked may not be stored")
            logging.shutdown()
            os._exit(1)
        log.info("%s: stopping", name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)


def _origin(peername: tuple[str, int] | None) -> str:
    """Who counts as one: an IPv4 address, or the half of an IPv6 address that names a network, for each host has 2^64
    of the other half."""
    address = peername[0] if peername else "an unknown address"  # it may be gone already
    if ":" not in address:
        return address
    network = ipaddress.IPv6Address(address.partition("%")[0]).packed[:8]
    return f"{ipaddress.IPv6Address(network + bytes(8))}/64"


def _keep_alive(sock: socket.socket) -> None:
    """Notice a peer that has vanished without a word."""
    with contextlib.suppress(OSError):  # it may be gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def _allow_descriptors(connections: int) -> None:
    """At the limit of descriptors asyncio logs a thousand errors a second and uvloop drops peers: stay below it.

    Where it may be, also when a whole backlog arrives at once: the event loop accepts all of it before the first one
    is refused.
    """
    needed = connections + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    if allowed < needed:
        raise CannotStart(
            f"max-connections {connections} needs {needed} descriptors, and the limit here is {hard} (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed + BACKLOG:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed + BACKLOG, allowed), hard))


def _defect(consumer: asyncio.Task[None]) -> BaseException | None:
    """The traceback is for a defect of ours, not for a broken disk."""
    error = consumer.exception()
    return None if error is None or type(error).__module__ == "aggregator.store" else error
