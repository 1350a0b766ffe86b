"""One client as somebody: who it is, what follows from that, and how it is turned away or ended for it.

Nothing of a client is read as lines before it is clear who it is. Rates slow it, by pausing to read, and drop nothing.
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
from aggregator.server.peer import LINGER_S, Peer, Phase
from aggregator.wire import Code, Failure, replies

log = logging.getLogger("aggregator")

MAX_PAUSE_S: Final = 60.0
"""The longest pause for a rate. While nothing is read, it is not seen that a client has gone; and the whole of what one
read has brought would be hours at a rate of a few bytes a second. Past this the client is read faster than it may be.
"""


class AuthenticatedPeer(Peer):
    """A client that has a slot, from ``admit`` on.

    It can be ended in two ways. ``reconnect`` is for one that may come back: as at SIGTERM, all that it sends until it
    has seen the end is stored. ``disconnect`` is for one that may do nothing any more: that is dropped.
    """

    caller: Caller
    _slot: Slot | None = None
    _first_line: FirstLine | None = None
    """Until it is clear whether it says who this is."""
    _rate: Rate | None = None
    _slow_until_s = 0.0
    _disconnected = False
    _dropped_bytes = 0
    """What has arrived since then."""

    # --- what a subclass knows

    @property
    def can_say_who(self) -> bool:
        """Whether there is a way to say who it is, once it is connected."""
        return self._first_line is not None and self.credentials.is_private

    def welcome(self) -> None:
        """Its token is right."""

    def reading_changed(self) -> None:
        """What it may read has changed."""

    # --- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.caller = Caller(self._state.identities, self.credentials)

    def data_received(self, data: bytes) -> None:
        if self._disconnected:
            self._dropped_bytes += len(data)
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

    def admit(self, slot: Slot) -> None:
        """It has a slot. See who it is, or let it say so."""
        self._slot = slot
        if self.caller.identity:
            self.accept_identity()
        elif self.can_say_who:
            self._state.admission.add_pending(slot)
        else:  # at once: it would only take one of the few places of strangers, or show its token to everybody
            self.deny(replies.token_in_the_open() if self._first_line else replies.nobody_is_known())

    def expire(self) -> None:
        """The time to say who it is is over."""
        self.deny(replies.auth_required())

    def renew(self) -> None:
        """The rules have changed: go on by the new ones, or end if it is nobody any more."""
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
        """Have it connect again: end as at SIGTERM, although the server goes on."""
        log.info("%s: has to connect again: %s", self._inbox.peer, failure.detail)
        self.shut_down(failure)
        self._abort_after(self._state.config.drain_timeout_s)

    def disconnect(self, failure: Failure) -> None:
        """Store and answer what was read, and close our half; drop what arrives later.

        It is gone LINGER_S after its answers are out. Until then its rate stays in force.
        """
        while self._inbox:
            self._take_turn()
        if self._disconnected or self._phase >= Phase.ENDING:
            return  # it ends already
        log.info("%s: disconnected: %s", self._inbox.peer, failure.detail)
        self._disconnected = True
        if self._outbox.muted:
            self._end(b"")
            if not self._transport.is_closing():
                self._close_our_half()
            self._abort_after(LINGER_S)
        else:
            is_stranger = self._slot is None or self._slot.identity is None
            said = replies.encode(replies.error(failure)) if self._port.replies and not is_stranger else b""
            self._end(said)
            self._abort_after(self._state.config.drain_timeout_s)  # if it does not read that

    def lift_rate(self) -> None:
        """It is about to end: rates hold no more, because what was read is to be stored in time."""
        self._rate = None
        self._gate.lift(Reason.RATE)

    def about(self) -> dict[str, Any]:
        """What CLIENTS shows of it."""
        return {
            "peer": self._inbox.peer, "port": self._port.descriptor, **self.caller.who, "tls": self.credentials.tls,
            "unanswered": self._outbox.unanswered, "slowed": self._gate.is_shut_for(Reason.RATE),
        }  # fmt: skip

    # --- who it is

    def accept_identity(self) -> bool:
        """Go on as the identity that it has shown to be; return whether there is room for one more of it."""
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
        """Say once why it is not served, and end."""
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
        """Take what the first line says; return what is to be read as lines."""
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
        rate = self._state.identities.rate(identity)
        if rate is not self._rate:
            self._rate = rate
            self._slow_until_s = 0.0
            self._gate.lift(Reason.RATE)  # that was the old one's
        self._inbox.identify(identity)

    # --- in

    def finish_input(self) -> None:
        """Take the end of the stream: what was held back comes first."""
        if self._first_line and self._phase < Phase.ENDING and (data := self._on_first_line(self._first_line.finish())):
            self._inbox.feed(data)
        super().finish_input()

    def _submit(self, events: Events, settle: Callable[[Outcome], None]) -> None:
        if self._rate:
            self.count(len(events))
        super()._submit(events, settle)

    def count(self, lines: int) -> None:
        """Note events, and other lines, that count by the rate of its identity: a bad line is as much work."""
        if self._rate:
            self._slow(self._rate.take_events(lines, time.monotonic()))

    # --- pressure

    def _slow(self, pause_s: float) -> None:
        """Read on only when the rate of its identity allows it."""
        if pause_s > 0:
            pause_s = min(pause_s, MAX_PAUSE_S)
            self._slow_until_s = time.monotonic() + pause_s
            if self._gate.shut(Reason.RATE):
                asyncio.get_running_loop().call_later(pause_s, self._go_on)

    def _go_on(self) -> None:
        left_s = self._slow_until_s - time.monotonic()
        if left_s > 0 and self._rate:  # more of the same turn was counted since
            asyncio.get_running_loop().call_later(left_s, self._go_on)
        else:
            self._gate.lift(Reason.RATE)

    # --- the end

    def _close_when_done(self) -> None:
        if self._disconnected and self._outbox.muted and not self._eof and self._phase < Phase.LOST:
            return  # it is read until its time is over, so that the log can say how much is dropped
        super()._close_when_done()

    def _abort_after(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._abort_if_there)

    def _abort_if_there(self) -> None:
        if self._phase < Phase.LOST:
            self.abort()
