"""Why reading from one client is paused. Reading goes on when no reason is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, auto


class Reason(Enum):
    """Why reading is paused."""

    INTAKE = auto()  # the intake is full
    SHARE = auto()  # this client has as many unanswered lines as one client may have
    REPLIES = auto()  # this client does not read its replies
    TURN = auto()  # this client has had its turn
    GATHERING = auto()  # what this client sends comes in small pieces
    RATE = auto()  # its identity has sent as much as it may for now


class Gate:
    """Pauses a transport while there is a reason. Reading is paused, never awaited.

    ``on_open`` is called when the last reason is gone, before reading goes on: it may find a new reason.
    """

    def __init__(self, on_open: Callable[[], None]) -> None:
        self._on_open = on_open
        self._reasons: set[Reason] = set()
        self._transport: asyncio.Transport | None = None
        self._ended = False
        self._looking = False

    def attach(self, transport: asyncio.Transport) -> None:
        """Set the transport to be paused."""
        self._transport = transport

    @property
    def open(self) -> bool:
        return not self._reasons

    def shut(self, reason: Reason) -> bool:
        """Stop reading for this reason too; return whether it is a new one."""
        if reason in self._reasons:
            return False
        if not self._reasons and self._transport and not self._transport.is_closing():
            self._transport.pause_reading()
        self._reasons.add(reason)
        return True

    def lift(self, reason: Reason) -> None:
        """Remove a reason. If none is left, read on."""
        if reason not in self._reasons:
            return
        self._reasons.remove(reason)
        if self._reasons:
            return
        self._looking = False
        self._on_open()
        if self.open and not self._ended and self._transport and not self._transport.is_closing():
            self._transport.resume_reading()

    def look(self) -> None:
        """Read once in spite of all reasons, because a client's end is not seen otherwise. Then call ``looked``."""
        if self._reasons and not self._ended and self._transport and not self._transport.is_closing():
            self._looking = True
            self._transport.resume_reading()

    def looked(self) -> None:
        """Note that something was read; if ``look`` was the cause, pause again."""
        if self._looking and self._transport and not self._transport.is_closing():
            self._transport.pause_reading()
        self._looking = False

    def is_shut_for(self, reason: Reason) -> bool:
        return reason in self._reasons

    def end(self) -> None:
        """Note that nothing follows: the peer has closed its half."""
        self._ended = True
