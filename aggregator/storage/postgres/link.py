"""One connection, which is opened again whenever it is needed.

Rules that hold here:

- A statement is never cancelled. If a wait for a standby is cancelled, PostgreSQL reports success, although no standby
  has the commit. A deadline shuts the socket down instead: PostgreSQL goes on, and the statement's outcome is unknown.
  Each statement runs in a task of its own, because psycopg would cancel it together with the task that waits for it.
- A success with a warning is no success: it comes when an administrator cancels the wait for a standby.
- A success that a later statement does not confirm is no success either: emptying ``synchronous_standby_names`` ends
  all waits without a warning.
- After an error of a connection, the next connection begins with the next host: a primary that has lost its standbys
  and our other servers still calls itself the primary.

A thread for each connection was tried: a small statement took twice the CPU time, and longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import psycopg
from psycopg import generators
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format, abc

from aggregator.storage.postgres.target import Target

DEADLINE_S: Final = 10.0
"""How long a statement may take before its connection is given up: as long as we wait for a host that has vanished, and
twice as long as a batch waits for its lane."""

RETRY_S: Final = 0.2
"""Pause before a failed operation is tried again: a failover takes one or a few seconds."""

CLOSE_S: Final = 1.0
"""How long a statement that is under way may take when the store is closed."""

T = TypeVar("T")

Connection = psycopg.AsyncConnection[Any]


class NotConnected(Exception):
    """There is no connection: nothing was sent."""


class Unknown(Exception):
    """The statement that was sent may have been carried out."""


class Statement(NamedTuple):
    """A statement that returns one row, and its parameters. The parameters and the row are in binary format."""

    text: bytes
    values: Sequence[bytes | None]
    types: Sequence[int]


class Link:
    """One statement at a time, first come, first served. ``on_connect`` is called with each new connection."""

    def __init__(self, target: Target, on_connect: Callable[[Connection], Awaitable[object]]) -> None:
        self._target = target
        self._on_connect = on_connect
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None
        self._attempt = 0
        self._turn = asyncio.Lock()
        self._deadline: asyncio.TimerHandle | None = None
        self._closed = False
        self._warnings: list[str] = []
        self.outdated = False
        """Whether the next statement needs a new connection, because another server has become the primary."""

    async def rows(self, statement: str, parameters: Any = None) -> list[Any]:
        """The rows of a statement, in Python's types. Raises as ``run`` does."""

        async def work(connection: Connection) -> list[Any]:
            cursor = await connection.execute(statement, parameters, binary=True)
            return await cursor.fetchall() if cursor.description else []

        return await self.run(work)

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run ``work`` with the connection.

        Raises NotConnected, Unknown, and psycopg.Error for what the server or psycopg has refused.
        """
        await self._turn.acquire()
        running = asyncio.ensure_future(self._work(work))
        self._await_end()
        running.add_done_callback(self._end)
        return await asyncio.shield(running)

    def _await_end(self) -> None:
        """Give the running work DEADLINE_S, and as long again if it has no socket yet."""
        self._deadline = asyncio.get_running_loop().call_later(DEADLINE_S, self._give_up)

    def _give_up(self) -> None:
        self._shut_down()
        self._await_end()

    def _end(self, running: asyncio.Future[Any]) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._turn.release()
        if not running.cancelled():
            running.exception()  # retrieve it, because the caller may be gone

    async def _work(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        connection = await self._connected()
        self._warnings.clear()
        try:
            done = await work(connection)
        except psycopg.Error as error:
            broken = connection.closed or (error.sqlstate is None and isinstance(error, psycopg.OperationalError))
            if not broken:  # a refusal; by psycopg if it has no SQLSTATE
                raise
            await self._drop()
            if error.sqlstate is not None:  # the server's last message on this connection
                raise
            raise Unknown(_text(error)) from error
        if self._warnings:
            raise Unknown(self._warnings[0])
        return done

    async def _connected(self) -> Connection:
        if self._closed:
            raise NotConnected("the store is closed")
        if self._connection is not None and self.outdated:
            await self._drop()
        if self._connection is not None:
            return self._connection
        try:
            connection = await psycopg.AsyncConnection.connect(
                **self._target.parameters(self._attempt), autocommit=True
            )
        except psycopg.Error as error:
            self._attempt += 1
            raise NotConnected(_text(error)) from error
        connection.prepare_threshold = None  # a pool between us and the server may switch connections
        connection.add_notice_handler(self._note)
        try:
            self._socket = socket.socket(fileno=os.dup(connection.fileno()))
            self._warnings.clear()
            await self._on_connect(connection)
            if self._warnings:
                raise NotConnected(self._warnings[0])
            if self._closed or self.outdated:
                raise NotConnected("the store is closed" if self._closed else "another server has become the primary")
        except BaseException as error:
            await connection.close()
            await self._drop()
            if isinstance(error, (psycopg.Error, OSError)):
                raise NotConnected(_text(error)) from error
            raise
        self._connection = connection
        return connection

    def _note(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            self._warnings.append(f"the server warned: {diagnostic.message_primary}")

    async def _drop(self) -> None:
        self._attempt += 1
        connection, self._connection = self._connection, None
        shut, self._socket = self._socket, None
        if shut is not None:
            shut.close()
        if connection is not None:
            await connection.close()

    def _shut_down(self) -> None:
        """End the running work, as a network failure would: its outcome is unknown."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    async def drop(self) -> None:
        """Close the connection, so that the next statement needs a new one."""
        async with self._turn:
            await self._drop()

    async def close(self, wait_s: float = CLOSE_S) -> None:
        """Close the connection, whatever it is doing. A statement that is under way may take ``wait_s``."""
        self._closed = True
        dropping = asyncio.ensure_future(self.drop())
        if not (await asyncio.wait({dropping}, timeout=wait_s))[0]:
            self._shut_down()
            await asyncio.wait({dropping}, timeout=CLOSE_S)


async def execute(
    connection: Connection, statement: Statement, confirmation: Statement | None = None
) -> list[bytes | None]:
    """Carry out a statement that commits on its own; return its only row.

    ``confirmation`` is sent together with the statement and carried out after the commit. Raises Unknown if the
    confirmation does not succeed, and psycopg.Error.
    """
    pgconn = connection.pgconn
    if confirmation is None:
        _send(pgconn, statement)
        return _row(await connection.wait(generators.execute(pgconn)))
    pgconn.enter_pipeline_mode()
    for each in (statement, confirmation):
        _send(pgconn, each)
        pgconn.pipeline_sync()  # each is a transaction of its own
    results = [await connection.wait(generators.execute(pgconn))]
    for _ in range(3):  # a sync, the confirmation's results, and a sync
        results.append(await connection.wait(generators.fetch_many(pgconn)))
    pgconn.exit_pipeline_mode()
    row = _row(results[0])
    try:
        _row(results[2])
    except psycopg.Error as error:
        raise Unknown(_text(error)) from error
    return row


def _send(pgconn: abc.PGconn, statement: Statement) -> None:
    formats = [Format.BINARY] * len(statement.values)
    pgconn.send_query_params(statement.text, statement.values, statement.types, formats, Format.BINARY)


def _row(results: Sequence[abc.PGresult]) -> list[bytes | None]:
    result = results[-1]
    if result.status != ExecStatus.TUPLES_OK:
        raise error_from_result(result)
    return [result.get_value(0, column) for column in range(result.nfields)]


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
