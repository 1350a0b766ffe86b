"""A client of the Forward port: chunks in, acks out.

A chunk is acked after all its events are committed. If any of them could not be stored, the connection is closed,
because Forward has no negative ack, and the client sends the chunk again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from aggregator.access.identity import Identity
from aggregator.event import Events
from aggregator.server.authenticated_peer import AuthenticatedPeer
from aggregator.server.excerpt import Excerpt
from aggregator.server.forward_inbox import ForwardInbox, LetIn
from aggregator.server.intake import Outcome
from aggregator.server.outbox import Place
from aggregator.server.peer import Peer, Phase
from aggregator.server.port import Port
from aggregator.server.state import State
from aggregator.wire import Failure, replies
from aggregator.wire.forward import NotForward, handshake
from aggregator.wire.forward.events import Conversion
from aggregator.wire.meaning import TURN_LINES

log = logging.getLogger("aggregator")


class _Unsettled:
    """A chunk whose events are being stored, in pieces."""

    def __init__(self, place: Place, ack: bytes, pieces: int) -> None:
        self.place = place
        self.ack = ack
        self.pieces = pieces
        self.failure: Failure | None = None


class ForwardConnection(AuthenticatedPeer):
    """A client of the Forward port."""

    advice = "Switch off require_ack_response if its acks are of no use"

    _inbox: ForwardInbox

    def __init__(self, state: State, port: Port, on_end: Callable[[Peer], None], stream: asyncio.StreamWriter) -> None:
        super().__init__(state, port, on_end, stream, ForwardInbox(state, port), muted=False)
        self._stopping = False
        self._half_closed = False  # by us: no ack can be written any more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if hello := self._inbox.hello():
            self._fill(self._outbox.reserve(0), hello)

    @property
    def can_say_who(self) -> bool:
        """Whether there is a shared key: Forward has no other way to authenticate."""
        return self._inbox.wants_key

    def shut_down(self, failure: Failure) -> None:
        """Ack what was read, then close our half; what arrives until the peer has seen that is stored too.

        A chunk that arrives after our half is closed and wants an ack is not stored, because it can no longer be acked:
        the client sends it to the next server. Some clients give it another name there, so that it would be stored
        twice.
        """
        self.lift_rate()
        while self._inbox:
            self._take_turn()
        self._stopping = True
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self._stopping and not self._inbox and self._outbox.empty and self._phase < Phase.ENDING:
            self._stopping = False
            self._mute()
            if not self._eof:
                self._half_closed = True
                self._close_in_silence()
        super()._close_when_done()

    # --- chunks in, acks out

    def take(self, found: Conversion | LetIn | NotForward) -> None:
        """Submit the events of a chunk, or act on another message."""
        if isinstance(found, Conversion):
            self._submit_chunk(found)
        elif isinstance(found, LetIn):
            self._fill(self._outbox.reserve(0), found.pong)
            if not found.well:
                self._inbox.refused("its shared key is wrong")
                self._end(b"")
            elif self.caller.identity is None:
                self.caller.show_key()
                self.accept_identity()
        else:
            self._inbox.refused(str(found))
            self._end(b"")

    def _submit_chunk(self, conversion: Conversion) -> None:
        events, name = conversion.events, conversion.chunk.name
        if self._half_closed and name is not None:
            log.debug("%s: a chunk came too late for an ack", self._inbox.peer)
            return
        self._state.stats.received += len(events)
        publisher = self._inbox.publisher
        if publisher and not publisher.may_publish(events.topics):
            self._refuse_chunk(events, publisher)
            return
        pieces = list(events.pieces(TURN_LINES))
        chunk = _Unsettled(self._outbox.reserve(len(events)), b"" if name is None else handshake.ack(name), len(pieces))
        for piece in pieces:
            self._submit(piece, partial(self._settled, chunk))
        if not pieces:
            self._fill(chunk.place, chunk.ack)

    def _refuse_chunk(self, events: Events, publisher: Identity) -> None:
        """Store nothing of a chunk if its client may not publish all its events: it can be acked only as a whole."""
        event = next(event for event in events if not publisher.may_publish((event.topic,)))
        rejection = replies.may_not_publish(publisher.name, event)
        for _ in range(len(events)):
            self._state.stats.reject(rejection.code)
        self.count(len(events))  # or a client that sends it again and again would not be slowed
        self._inbox.refused(f"{rejection.detail}: {Excerpt(event.topic.encode())}")
        self._end(b"")

    def _settled(self, chunk: _Unsettled, outcome: Outcome) -> None:
        if isinstance(outcome, Failure):
            chunk.failure = outcome
        chunk.pieces -= 1
        if chunk.pieces:
            return
        if not chunk.failure:
            self._fill(chunk.place, chunk.ack)
            return
        self._state.peer_log.say(
            logging.WARNING, f"{self._port.name}: %s: closed without an ack: %s", self._inbox.peer,
            chunk.failure.detail,
        )  # fmt: skip
        self._fill(chunk.place, b"")
        self._end(b"")
