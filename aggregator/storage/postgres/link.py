"""One connection, in a thread of its own: while the server works, libpq waits outside of Python.

Rules that hold here:

- A statement is never cancelled. To cancel the wait for a standby is to be told of success, although no standby has the
  commit. A deadline shuts the socket down instead: the server goes on, and the statement's outcome is unknown.
- A success with a warning is no success: an administrator who cancels that wait causes one.
- A link connects when it is used, and again after an error of the connection, each time with the next host first: a
  primary that has lost its standbys, and the others of us, still calls itself one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format

from aggregator.storage.engine import StorageError
from aggregator.storage.postgres.target import Target

DEADLINE_S: Final = 10.0
"""How long a statement may take before its connection is given up. As long as a host that has vanished is waited for,
and twice as long as a batch waits for its lane."""

T = TypeVar("T")

Connection = psycopg.Connection[Any]


class NotConnected(Exception):
    """There is no connection: nothing was sent."""


class Unknown(Exception):
    """What was sent may have been carried out."""


class Link:
    """A connection that is made anew when it is needed. One statement at a time, first come, first served.

    ``on_connect`` is called in the thread, with each new connection; what it raises is raised by the statement.
    """

    def __init__(self, name: str, target: Target, on_connect: Callable[[Connection], None]) -> None:
        self._target = target
        self._on_connect = on_connect
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None
        self._turn = 0
        self._closed = False
        self._warnings: list[str] = []

    async def execute(
        self, statement: bytes, values: list[bytes | None], types: list[int], deadline_s: float = DEADLINE_S
    ) -> list[bytes | None]:
        """Carry out a statement that commits by itself; return its only row. All is binary.

        Raises NotConnected, Unknown, and psycopg.Error for what the server has refused.
        """

        def work(connection: Connection) -> list[bytes | None]:
            self._warnings.clear()
            result = connection.pgconn.exec_params(
                statement, values, types, [Format.BINARY] * len(values), Format.BINARY
            )
            if result.status != ExecStatus.TUPLES_OK:
                raise error_from_result(result)
            if self._warnings:
                raise Unknown(self._warnings[0])
            return [result.get_value(0, column) for column in range(result.nfields)]

        return await self.run(work, deadline_s)

    async def rows(self, statement: str, parameters: Any = None, deadline_s: float = DEADLINE_S) -> list[Any]:
        """The rows of a statement, in Python's types. Raises as ``execute`` does."""

        def work(connection: Connection) -> list[Any]:
            self._warnings.clear()
            cursor = connection.execute(statement, parameters, binary=True)
            found = cursor.fetchall() if cursor.description else []
            if self._warnings:
                raise Unknown(self._warnings[0])
            return found

        return await self.run(work, deadline_s)

    async def run(self, work: Callable[[Connection], T], deadline_s: float = DEADLINE_S) -> T:
        """Do something with the connection. Raises as ``execute`` does."""
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._work, work)
        while not (await asyncio.wait({running}, timeout=deadline_s))[0]:
            self.shut_down()
        return running.result()

    def _work(self, work: Callable[[Connection], T]) -> T:
        connection = self._connected()
        try:
            return work(connection)
        except psycopg.Error as error:
            if error.sqlstate is not None and not connection.closed:
                raise
            self._drop()
            if error.sqlstate is not None:  # the server's last word on this connection
                raise
            raise Unknown(_text(error)) from error

    def _connected(self) -> Connection:
        if self._closed:
            raise NotConnected("the store is closed")
        if self._connection is not None:
            return self._connection
        try:
            connection = psycopg.connect(**self._target.parameters(self._turn), autocommit=True)
        except psycopg.Error as error:
            self._turn += 1
            raise NotConnected(_text(error)) from error
        connection.prepare_threshold = None  # a pool between us and the server may change its connections
        connection.add_notice_handler(self._note)
        self._connection = connection
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        try:
            self._warnings.clear()
            self._on_connect(connection)
            if self._warnings:
                raise NotConnected(self._warnings[0])
        except psycopg.Error as error:
            self._drop()
            raise NotConnected(_text(error)) from error
        except (StorageError, NotConnected):
            self._drop()
            raise
        return connection

    def _note(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            self._warnings.append(f"the server warned: {diagnostic.message_primary}")

    def _drop(self) -> None:
        self._turn += 1
        connection, self._connection = self._connection, None
        shut, self._socket = self._socket, None
        if shut is not None:
            shut.close()
        if connection is not None:
            connection.close()

    def shut_down(self) -> None:
        """End whatever is on its way, as if the network had: its outcome is unknown."""
        shut = self._socket
        if shut is not None:
            with contextlib.suppress(OSError):
                shut.shutdown(socket.SHUT_RDWR)

    async def drop(self) -> None:
        """Connect anew for the next statement."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)

    async def close(self) -> None:
        """Let go of the connection, whatever it is doing."""
        self._closed = True
        loop = asyncio.get_running_loop()
        closing = loop.run_in_executor(self._thread, self._drop)
        done, _ = await asyncio.wait({closing}, timeout=1.0)
        if not done:
            self.shut_down()
        self._thread.shutdown(wait=False)


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
