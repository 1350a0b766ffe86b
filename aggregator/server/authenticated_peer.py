"""A client with an identity: how it authenticates, how it is slowed, and how it is turned away or ended.

Nothing that a client sends is read as lines before its identity is clear. Rates slow a client by pausing its reading;
they drop nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from aggregator.access.identity import Identity
from aggregator.access.rate import Rate
from aggregator.event import Events
from aggregator.server.admission import Slot
from aggregator.server.caller import Caller
from aggregator.server.first_line import FirstLine, Said
from aggregator.server.gate import Reason
from aggregator.server.intake import Outcome
from aggregator.server.peer import LINGER_S, TICK_S, Peer, Phase
from aggregator.wire import Code, Failure, replies

log = logging.getLogger("aggregator")

LOOK_S: Final = 60.0
"""How often a slowed client is read once in spite of its rate, if none of its input waits, because its end is not seen
otherwise. At a rate of a few bytes a second, the pause after a single read may last hours."""


class AuthenticatedPeer(Peer):
    """A client that has a slot, from ``admit`` on.

    There are two ways to end it. ``reconnect`` is for a client that may come back: as at SIGTERM, everything it sends
    until it has seen the end is stored. ``disconnect`` is for a client that may do nothing any more: what it sends
    after that is dropped.
    """

    caller: Caller
    _slot: Slot | None = None
    _first_line: FirstLine | None = None
    """Set until it is clear whether the first line authenticates the client."""
    _rate: Rate | None = None
    _is_rate_lifted = False  # for good
    _slowed: asyncio.TimerHandle | None = None
    _held_s = 0.0
    """How long nothing has followed an unfinished first line, for a client that is identified without it."""
    _to_reconnect: Failure | None = None  # to be done when all that was read is taken
    _disconnected: Failure | None = None
    _dropped_bytes = 0
    """The bytes that have arrived since ``disconnect``."""

    # --- what a subclass knows

    @property
    def can_say_who(self) -> bool:
        """Whether a connected client has a way to say who it is."""
        return self._first_line is not None and self.credentials.is_private

    def welcome(self) -> None:
        """Called when the client has shown a valid token."""

    def reading_changed(self) -> None:
        """Called when the topics that the client may read have changed."""

    # --- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.caller = Caller(self._state.identities, self.credentials)

    def data_received(self, data: bytes) -> None:
        if self._disconnected:
            self._dropped_bytes += len(data)
            return
        self._held_s = 0.0
        self._gate.looked()
        if self._first_line and self._phase < Phase.ENDING:
            data = self._on_first_line(self._first_line.feed(data))
        if self._rate:
            self._slow(self._rate.take_bytes(len(data), time.monotonic()))
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._dropped_bytes:
            self._state.stats.skipped_bytes += self._dropped_bytes
            self._state.peer_log.say(
                logging.WARNING, f"{self._port.name}: %s: dropped %d bytes that arrived after it was disconnected",
                self._inbox.peer, self._dropped_bytes,
            )  # fmt: skip
        super().connection_lost(exc)

    # --- called by the server

    def tick(self) -> None:
        """Give up waiting for the first line of a client that is identified without it; read what has come as usual."""
        if self._first_line and self._first_line.has_some and self.caller.identity:
            self._held_s += TICK_S
            if self._held_s > self._state.config.line_timeout_s and (
                rest := self._on_first_line(self._first_line.finish())
            ):
                super().data_received(rest)
        super().tick()

    def admit(self, slot: Slot) -> None:
        """Take the slot. Go on as the identity that the client has, or wait for the client to authenticate."""
        self._slot = slot
        if self.caller.identity:
            self.accept_identity()
        elif self.can_say_who:
            self._state.admission.add_pending(slot)
        else:  # at once: it would only take one of the few pending slots, or show its token to everybody on the way
            self.deny(replies.token_in_the_open() if self._first_line else replies.nobody_is_known())

    def expire(self) -> None:
        """End: the client has not authenticated in time."""
        self.deny(replies.auth_required())

    def renew(self) -> None:
        """Apply changed rules: go on under the new ones, or end if the client has no identity any more."""
        before = self.caller.identity
        if before is None or self._slot is None or self._phase >= Phase.REFUSING:
            return
        self.caller.renew()
        identity = self.caller.identity
        if identity is None:
            self.disconnect(replies.no_longer_known(before.name))
        else:
            self._state.admission.identify(self._slot, identity)
            self._apply(identity)
            if identity.read != before.read:
                self.reading_changed()

    def reconnect(self, failure: Failure) -> None:
        """Make the client connect again: end the connection as at SIGTERM, although the server goes on."""
        if self._to_reconnect or self._disconnected or self._phase >= Phase.REFUSING:
            return  # it is ending already
        log.info("%s: has to connect again: %s", self._inbox.peer, failure.detail)
        self._to_reconnect = failure
        self._end_soon()

    def disconnect(self, failure: Failure) -> None:
        """Store and answer what was read, and close our half; drop what arrives later.

        Once the answers are out, the connection is gone within LINGER_S.
        """
        if self._disconnected or self._phase >= Phase.ENDING:
            return  # it is ending already
        log.info("%s: disconnected: %s", self._inbox.peer, failure.detail)
        self._disconnected = failure
        self._end_soon()

    def lift_rate(self) -> None:
        """Stop slowing the client, because it is about to end and what was read must be stored in time."""
        self._is_rate_lifted = True
        self._rate = None
        self._stop_slowing()

    def about(self) -> dict[str, Any]:
        """What CLIENTS shows of the client."""
        return {
            "peer": self._inbox.peer, "port": self._port.descriptor, **self.caller.who, "tls": self.credentials.tls,
            "unanswered": self._outbox.unanswered, "slowed": self._gate.is_shut_for(Reason.RATE),
        }  # fmt: skip

    # --- who it is

    def accept_identity(self) -> bool:
        """Go on as the client's identity. Return False, and end, if that identity has too many connections."""
        identity, slot = self.caller.identity, self._slot
        assert identity
        assert slot
        if failure := self._state.admission.why_not_as(slot, identity):
            self.deny(failure)
            return False
        self._state.admission.identify(slot, identity)
        self._apply(identity)
        return True

    def deny(self, failure: Failure) -> None:
        """Tell the client why it is not served, and end."""
        if failure.code is not Code.BUSY:
            self._state.stats.auth_failed += 1
        self._state.peer_log.say(
            logging.WARNING, f"{self._port.name}: %s was turned away: %s", self._inbox.peer, failure.detail
        )
        self._first_line = None
        may_linger = self._slot is not None and self._state.admission.begin_leaving(self._slot)
        said = replies.encode(replies.error(failure)) if self._port.replies else b""
        self.refuse(said, LINGER_S if may_linger else 0.0)

    def _on_first_line(self, said: Said | None) -> bytes:
        """Act on what the first line says; return the bytes to be read as lines."""
        if said is None:
            return b""
        self._first_line = None
        if said.token is None:
            if self.caller.identity or not said.rest:
                return said.rest
            self.deny(replies.auth_required())
        elif failure := self.caller.show(said.token):
            self.deny(failure)
        elif self.accept_identity():
            self._inbox.skip(said.lines)
            self.welcome()
            return said.rest
        return b""

    def _apply(self, identity: Identity) -> None:
        rate = None if self._is_rate_lifted else self._state.identities.rate(identity)
        if rate is not self._rate:
            self._rate = rate
            self._stop_slowing()  # the pause was due to the old rate
            self._go_on()  # if other connections have used up the new rate, this connection waits as well
        self._inbox.identify(identity)

    # --- in

    def finish_input(self) -> None:
        """Take the end of the stream, after what was held back as the first line."""
        if self._disconnected:
            return
        if self._first_line and self._phase < Phase.ENDING and (data := self._on_first_line(self._first_line.finish())):
            self._inbox.feed(data)
        super().finish_input()

    def _submit(self, events: Events, settle: Callable[[Outcome], None]) -> None:
        if self._rate:
            self.count(len(events))
        super()._submit(events, settle)

    def count(self, lines: int) -> None:
        """Count events and other lines against the identity's rate. A bad line is as much work as an event."""
        if self._rate:
            self._slow(self._rate.take_events(lines, time.monotonic()))

    # --- pressure

    def _slow(self, pause_s: float) -> None:
        """Pause reading until the identity's rate allows more."""
        if pause_s > 0 and self._gate.shut(Reason.RATE):
            self._slowed = asyncio.get_running_loop().call_later(min(pause_s, LOOK_S), self._go_on)

    def _go_on(self) -> None:
        """Read on, unless a connection of the identity, this one or another, has used up the rate since."""
        left_s = self._rate.pause_s(time.monotonic()) if self._rate else 0.0
        if left_s <= 0:
            self._stop_slowing()
            return
        self._gate.shut(Reason.RATE)
        if not self._inbox and self._phase < Phase.LOST:
            self._gate.look()
        self._slowed = asyncio.get_running_loop().call_later(min(left_s, LOOK_S), self._go_on)

    def _stop_slowing(self) -> None:
        if self._slowed:
            self._slowed.cancel()
            self._slowed = None
        self._gate.lift(Reason.RATE)

    # --- the end

    def _end_soon(self) -> None:
        """Take what was read, in ordinary turns, because it may be a lot; then end."""
        self.lift_rate()
        self._abort_after(self._state.config.drain_timeout_s)  # if the client reads no answers, or goes on sending
        if self._inbox and self._gate.open:
            self._take_turn()
        self._close_when_done()

    def _close_when_done(self) -> None:
        if not self._inbox:
            if self._disconnected and self._phase < Phase.ENDING:
                self._end_disconnected(self._disconnected)
                return
            if self._to_reconnect and self._phase < Phase.REFUSING:
                failure, self._to_reconnect = self._to_reconnect, None
                self.shut_down(failure)
                return
        if self._disconnected and self._outbox.muted and not self._eof and self._phase < Phase.LOST:
            return  # read until the deadline, so that the log can say how much is dropped
        super()._close_when_done()

    def _end_disconnected(self, failure: Failure) -> None:
        """End a disconnected client whose input has all been taken."""
        if self._outbox.muted:
            self._end(b"")
            if not self._transport.is_closing():
                self._close_our_half()
            self._abort_after(LINGER_S)
        else:
            is_stranger = self._slot is None or self._slot.identity is None
            self._end(replies.encode(replies.error(failure)) if self._port.replies and not is_stranger else b"")

    def _abort_after(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._abort_if_there)

    def _abort_if_there(self) -> None:
        if self._phase < Phase.LOST:
            if not self._disconnected:  # it is worth a warning, because whatever the client still sends is lost
                self._state.peer_log.say(
                    logging.WARNING, f"{self._port.name}: %s was dropped, because it did not end in time",
                    self._inbox.peer,
                )  # fmt: skip
            self.abort()
