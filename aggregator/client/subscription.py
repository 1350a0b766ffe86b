"""One SUBSCRIBE on one connection: what is sent, and what the lines that come back mean.

Lines come in this order: the answer to SUBSCRIBE; then deliveries and lines that say how far the reader is, with the
answers to ACK between them; finally a line that says why nothing follows, or the end of the connection.
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum
from typing import Any, Final, Protocol

from aggregator.client import query
from aggregator.client.connect import Reached, Server, SocketAddress, open_connection
from aggregator.client.connection import Connection
from aggregator.client.query import Position
from aggregator.client.reply import NotOurProtocol, decode
from aggregator.wire import Code, Status, Word
from aggregator.wire.delivery import EVENT_START

_RESET: Final = struct.pack("ii", 1, 0)
"""Closing resets the connection. Only a reset ends a subscription at once, because a subscription outlives the client's
half of the stream."""

_ASIDE: Final = (Status.CAUGHT_UP, Status.HEARTBEAT, Status.GAP)


class Gap(Exception):
    """The events past ``after``, up to ``seq``, are no longer stored."""

    def __init__(self, after: Position, seq: Position) -> None:
        super().__init__(f"a gap: events past {after}, up to {seq}, are no longer stored")
        self.after, self.seq = after, seq


class AnotherStore(Exception):
    """The server has another store than before, in which positions mean something else."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"another store: {found}, not {expected}")
        self.expected, self.found = expected, found


class TakenOver(Exception):
    """Another client has subscribed under the same name, or has removed it. Subscribing again would take it over."""


class Refused(Exception):
    """The server does not accept the subscription, and never will."""


class Reader(Protocol):
    """The side that subscribes."""

    def begun(self, fields: dict[str, Any]) -> None:
        """The server has answered ``ok``."""

    def delivered(self, lines: list[bytes]) -> None:
        """Events have come: one or more, each a line without its LF."""

    def said(self, status: Status, seq: Position, fields: dict[str, Any]) -> None:
        """``caught_up``, ``heartbeat``, ``gap`` or ``end``; or ``error``, after which the connection is dropped."""

    def acked(self, taken: bool) -> None:
        """The ack was answered; ``taken`` tells whether the server took it."""

    def failed(self, error: Exception) -> None:
        """The subscription has failed, and trying again is useless."""


class _Stage(IntEnum):
    NEW = 0
    ASKING = 1
    """Asking for the name of the store, before anything is done in it."""
    SUBSCRIBING = 2
    SUBSCRIBED = 3
    ENDED = 4


class Subscription:
    """The dialogue with the server."""

    connection: Connection

    def __init__(self, reader: Reader, command: bytes, store: str | None) -> None:
        self._reader = reader
        self._command = command
        self._store = store
        self._stage = _Stage.NEW
        self._acks = 0  # unanswered

    @property
    def is_answered(self) -> bool:
        """Whether the server has accepted the subscription."""
        return self._stage >= _Stage.SUBSCRIBED

    @property
    def may_ack(self) -> bool:
        """Whether an ack can be sent now: one at a time, because the server answers each from its disk."""
        return self._stage >= _Stage.SUBSCRIBED and not self._acks and not self.connection.over.done()

    async def connect(self, server: Server, last: SocketAddress | None) -> Reached:
        """Connect and subscribe. Raises OSError.

        If the store is known, check first that it is the same store: a name must not be made in another one.
        """
        reached, transport, self.connection = await open_connection(
            server, lambda: Connection(self._take_lines, server.token), last
        )
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if self._store is None:
            self._subscribe()
        else:
            self._stage = _Stage.ASKING
            self.connection.transport.write(query.line(Word.SUBSCRIBE, ["-"], {}) + b"UNSUBSCRIBE\n")
        return reached

    def _subscribe(self) -> None:
        self._stage = _Stage.SUBSCRIBING
        self.connection.transport.write(self._command)

    def ack(self, position: Position) -> None:
        """Tell the server that all events up to ``position`` are handled."""
        self._acks += 1
        self.connection.transport.write(f"ACK {position}\n".encode())

    def _take_lines(self, lines: list[bytes | None]) -> None:
        try:
            self._take(lines)
        except Exception as error:  # the server is not an aggregator, or there is a defect
            self._fail(error)

    def _take(self, lines: list[bytes | None]) -> None:
        events = [line for line in lines if line is not None and line.startswith(EVENT_START)]
        if len(events) != len(lines):  # rarely
            events = []
            for line in lines:
                if line is not None and line.startswith(EVENT_START):
                    events.append(line)
                    continue
                self._deliver(events)
                events = []
                self._take_other(line)
        self._deliver(events)

    def _deliver(self, lines: list[bytes]) -> None:
        if lines and self._stage is _Stage.SUBSCRIBED:
            self._reader.delivered(lines)

    def _take_other(self, line: bytes | None) -> None:
        if self.connection.over.done():
            return
        if line is None:
            raise NotOurProtocol("a line that is far too long")
        fields = decode(line)
        status = fields["status"]
        if self._stage is _Stage.ASKING:
            self._take_store(status, fields)
        elif self._stage is _Stage.SUBSCRIBING:
            self._take_answer(status, fields)
        elif status in _ASIDE:
            self._reader.said(Status(status), fields["seq"], fields)
        elif status == Status.END:
            self._stage = _Stage.ENDED
            self._reader.said(Status.END, fields["seq"], fields)
        elif status == Status.ERROR and "seq" in fields:
            self._over(fields)
        elif self._acks and status in (Status.OK, Status.REJECTED, Status.ERROR):
            self._acks -= 1
            self._reader.acked(status == Status.OK)
        else:
            self._drop(fields)

    def _take_store(self, status: str, fields: dict[str, Any]) -> None:
        if status in (Status.REJECTED, Status.ERROR):
            self._drop(fields)
        elif fields.get("unsubscribed"):
            self._subscribe()
        elif (found := fields.get("store")) not in (None, self._store):
            assert self._store
            self._fail(AnotherStore(self._store, str(found)))

    def _take_answer(self, status: str, fields: dict[str, Any]) -> None:
        if status == Status.OK and "store" in fields:
            self._stage = _Stage.SUBSCRIBED
            self._reader.begun(fields)
        elif status == Status.REJECTED:
            self._fail(Refused(str(fields.get("detail"))))
        else:
            self._drop(fields)

    def _over(self, fields: dict[str, Any]) -> None:
        if fields.get("code") == Code.TAKEN_OVER:
            self._fail(TakenOver(str(fields.get("detail"))))
        else:
            self._reader.said(Status.ERROR, fields["seq"], fields)
            self._drop(fields)

    def _drop(self, fields: dict[str, Any]) -> None:
        """End the connection because of this reply; another connection may do better."""
        if fields["status"] not in tuple(Status):
            raise NotOurProtocol(f"unexpected status {fields['status']!r}")
        self.connection.end(f"{fields.get('code')}: {fields.get('detail')}")

    def _fail(self, error: Exception) -> None:
        self._reader.failed(error)
        self.connection.end(str(error))
