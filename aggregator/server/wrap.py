"""A client of the wrap port: texts in, and nothing out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from aggregator.event import Events
from aggregator.server.authenticated_peer import AuthenticatedPeer
from aggregator.server.first_line import FirstLine
from aggregator.server.intake import Outcome
from aggregator.server.outbox import Place
from aggregator.server.peer import Peer
from aggregator.server.port import Port
from aggregator.server.state import State
from aggregator.server.wrap_inbox import Refused, WrapInbox
from aggregator.wire import Failure


class WrapConnection(AuthenticatedPeer):
    """A client of the wrap port."""

    def __init__(self, state: State, port: Port, on_end: Callable[[Peer], None], stream: asyncio.StreamWriter) -> None:
        super().__init__(state, port, on_end, stream, WrapInbox(state, port), muted=True)
        self._first_line = FirstLine(text=True)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._eof:
            self.finish_input()  # a text without an end is kept: nobody would send it again
            if self._gate.open:
                self._take_turn()
        super().connection_lost(exc)

    def shut_down(self, failure: Failure) -> None:
        """Close our half at once; what the client sends until it has seen that is stored too."""
        self.lift_rate()
        self._close_in_silence()

    def disconnect(self, failure: Failure) -> None:
        """End a client that may do nothing any more. A text without an end is kept here too."""
        if not self._first_line:
            self.finish_input()
        super().disconnect(failure)

    def take(self, found: Events | Refused) -> None:
        """Submit the events that texts have become."""
        if isinstance(found, Refused):
            self.count(found.events)
            return
        self._state.stats.received += len(found)
        self._submit(found, partial(self._settled, self._outbox.reserve(len(found))))

    def _settled(self, place: Place, outcome: Outcome) -> None:
        self._fill(place, b"")
