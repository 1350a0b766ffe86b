"""A client of a TLS port until its handshake is over: it has a slot, and is one of those who are not known."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from aggregator import address
from aggregator.server.admission import Slot
from aggregator.server.port import Port
from aggregator.server.state import State
from aggregator.server.tls import Result, TlsTransport
from aggregator.wire import Failure

LAST_HANDSHAKE_S: Final = 1.0
"""How long handshakes may go on when the server is stopping: whoever is in the middle of one may end it, and strangers
hold up nothing."""


class TlsHandshake:
    """Who has the slot of a connection from the accept on. Its layer tells it what becomes of the handshake.

    ``on_open`` is called when that has ended well, with the transport for the client; ``on_end`` when the connection
    has ended before.
    """

    def __init__(
        self,
        state: State,
        port: Port,
        plain: asyncio.Transport,
        on_open: Callable[[TlsHandshake, TlsTransport], None],
        on_end: Callable[[TlsHandshake], None],
    ) -> None:
        self._state = state
        self._port = port
        self._plain = plain
        self._on_open, self._on_end = on_open, on_end
        self._slot: Slot | None = None  # None: it was refused
        self._result: Result | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- called by the server

    def admit(self, slot: Slot) -> None:
        """It has a slot, among those who are not known."""
        self._slot = slot
        self._state.admission.add_pending(slot)

    def expire(self) -> None:
        """It has taken too long."""
        self.finished(Result.TIMED_OUT, "it was not done in time")
        self.abort()

    def renew(self) -> None:
        """It is not known yet, so other rules change nothing."""

    def disconnect(self, failure: Failure) -> None:
        """Drop it: it has done nothing yet."""
        self.abort()

    def about(self) -> dict[str, Any]:
        """What CLIENTS shows of it."""
        name = self._plain.get_extra_info("peername")
        return {
            "peer": address.join(address.unmapped(name[0]), name[1]) if name else "a client",
            "port": self._port.descriptor, "identity": None, "by": None, "tls": None, "unanswered": 0, "slowed": False,
        }  # fmt: skip

    def tick(self) -> None:
        """Nothing changes here by itself: the handshake has its deadline as a stranger."""

    def shut_down(self, failure: Failure) -> None:
        """The server is stopping: the handshake may end first, if that is soon."""
        self._timer = asyncio.get_running_loop().call_later(LAST_HANDSHAKE_S, self.abort)

    def abort(self) -> None:
        """Drop the connection."""
        self._plain.abort()

    # --- called by the layer

    @property
    def is_stranger(self) -> bool:
        """Whether it is not known yet whose slot this is: a client may have to say so after its handshake."""
        return self._slot is None or self._slot.identity is None

    def opened(self, transport: TlsTransport) -> None:
        """The handshake has ended well."""
        self.finished(Result.OK)
        self._stop_timer()
        self._on_open(self, transport)

    def finished(self, result: Result, why: str = "") -> None:
        """The handshake has ended, well or not. The first end counts."""
        if self._slot is None or self._result:
            return
        self._result = result
        self._state.stats.handshake(result.value)
        if result not in (Result.OK, Result.GONE):
            self._state.peer_log.say(logging.WARNING, f"{self._port.name}: no TLS with %s: {why}", self._slot.origin)

    def broken(self, trace: str) -> None:
        """A defect of ours ends this client."""
        self._state.peer_log.say(logging.ERROR, f"{self._port.name}: a client was dropped:\n%s", trace)

    def lost(self) -> None:
        """The connection has ended without TLS."""
        self.finished(Result.GONE)
        self._stop_timer()
        self._on_end(self)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
