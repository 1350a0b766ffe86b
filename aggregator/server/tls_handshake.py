"""A client of a TLS port until its handshake is over. It has a slot, which is pending."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from aggregator import address
from aggregator.server.admission import Slot
from aggregator.server.port import Port
from aggregator.server.state import State
from aggregator.server.tls import Result
from aggregator.server.tls_transport import TlsTransport
from aggregator.wire import Failure

LAST_HANDSHAKE_S: Final = 1.0
"""How long handshakes may go on when the server is stopping. A client in the middle of one may finish it, and a client
that does not authenticate holds up nothing."""


class TlsHandshake:
    """Holds the slot of a connection from the accept on. The TLS layer tells it how the handshake ends.

    ``on_open`` is called when the handshake has succeeded, with the transport for the client; ``on_end`` when the
    connection has ended before that.
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
        self._slot: Slot | None = None  # None: the client was refused
        self._result: Result | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- called by the server

    def admit(self, slot: Slot) -> None:
        """Take the slot, which is pending from now on."""
        self._slot = slot
        self._state.admission.add_pending(slot)

    def expire(self) -> None:
        """End: the handshake has taken too long."""
        self.finished(Result.TIMED_OUT, "it was not done in time")
        self.abort()

    def renew(self) -> None:
        """Do nothing: the client is not identified yet, so other rules change nothing."""

    def disconnect(self, failure: Failure) -> None:
        """Drop the connection, because its client has done nothing yet."""
        self.abort()

    def about(self) -> dict[str, Any]:
        """What CLIENTS shows of the client."""
        name = self._plain.get_extra_info("peername")
        return {
            "peer": address.join(address.unmapped(name[0]), name[1]) if name else "a client",
            "port": self._port.descriptor, "identity": None, "by": None, "tls": None, "unanswered": 0, "slowed": False,
        }  # fmt: skip

    def tick(self) -> None:
        """Do nothing: a pending slot has its deadline already."""

    def shut_down(self, failure: Failure) -> None:
        """The server is stopping: let the handshake finish first, if it does so within LAST_HANDSHAKE_S."""
        self._timer = asyncio.get_running_loop().call_later(LAST_HANDSHAKE_S, self.abort)

    def abort(self) -> None:
        """Drop the connection."""
        self._plain.abort()

    # --- called by the layer

    @property
    def is_stranger(self) -> bool:
        """Whether the client is not identified yet. It may have to authenticate after its handshake."""
        return self._slot is None or self._slot.identity is None

    def opened(self, transport: TlsTransport) -> None:
        """The handshake has succeeded."""
        self.finished(Result.OK)
        self._stop_timer()
        self._on_open(self, transport)

    def finished(self, result: Result, why: str = "") -> None:
        """Record how the handshake has ended. Only the first call counts."""
        if self._slot is None or self._result:
            return
        self._result = result
        self._state.stats.handshake(result.value)
        if result not in (Result.OK, Result.GONE):
            self._state.peer_log.say(
                logging.WARNING, f"{self._port.name}: TLS handshake with %s failed: {why}", self._slot.origin
            )

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
