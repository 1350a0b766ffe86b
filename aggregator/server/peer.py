"""One client of any port: its transport, its backpressure, and the phases of its end. Its subclasses know what a client
says.

It is an ``asyncio.Protocol``, not a task with a stream. After a reset a StreamReader throws away complete lines it
already holds, and awaiting ``drain()`` before reading on deadlocks against a peer that does not read.

Rules that hold here:

- Replies leave in the order of what they answer (``outbox``).
- Reading is paused, never awaited (``gate``). In one turn of the loop at most a turn's worth of a client's input is
  interpreted, so that other clients get their turns.
- While many events wait for their commit, a client that has sent few lines is read a little later, when more of its
  lines have arrived.
- Only this object and its ``Deliveries`` write to its transport, and never to a closing one (uvloop raises).
- What was read is stored, however the connection ends. A reset drops only an unfinished last line or message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from enum import IntEnum, auto
from functools import partial
from typing import Any, ClassVar, Final, Protocol, cast

from aggregator import address
from aggregator.access.identity import Identity
from aggregator.event import Events
from aggregator.server import credentials
from aggregator.server.credentials import Credentials
from aggregator.server.gate import Gate, Reason
from aggregator.server.intake import LOW_WATER_DIVISOR, Outcome, Submission
from aggregator.server.outbox import Outbox, Place
from aggregator.server.port import Port
from aggregator.server.slow_turns import SLOW_TURN_S
from aggregator.server.state import State
from aggregator.wire import Failure
from aggregator.wire.meaning import PIECE_LINES

log = logging.getLogger("aggregator")

IN_FLIGHT_DIVISOR: Final = 4
"""One connection may have this part of the queue in flight, so that a flooder shares the queue instead of owning it;
four connections together can still fill it."""

GATHER_EVENTS: Final = 256
GATHER_S: Final = 0.004
"""While so many events wait, a connection from which fewer than PIECE_LINES lines were read is read again only after
this time. At half of the peak rate over 8 connections, each read has a dozen lines. Reading, judging and answering them
by the dozen took a tenth more processor time, and a quarter more in the percentiles. With fewer events waiting, a
commit is over sooner than this."""

REPLY_DEADLINE_S: Final = 5.0
"""How long a client may leave its reply buffer full before it is muted. It is long enough for a busy reader to come
back, and short enough that a fire-and-forget sender on the wrong port is held up only once."""

TICK_S: Final = 1.0
"""How often unfinished lines are checked."""

LINGER_S: Final = 1.0
"""How long to wait for the peer's end of the stream after ours. Until then input is read and dropped, because closing a
socket with unread data makes the kernel send a reset, which destroys replies that the peer has not read yet."""

QUIET_S: Final = 1.0
"""A silent client is dropped if it sends nothing for this long after our half of the close. What it sends later goes to
the next server. Under load, shippers send every few milliseconds."""


class Phase(IntEnum):
    """How far a connection has come towards its end. The peer's half-close and being muted are independent of it."""

    SERVING = auto()
    REFUSING = auto()  # the server is stopping: events are answered with an error
    ENDING = auto()  # our last reply is queued: whatever else arrives is dropped
    CLOSING = auto()  # our half is closed, or will be when the last reply is out
    LOST = auto()  # the transport is gone; what was read is still being stored


class AnyInbox(Protocol):
    """The input of one client; its length is the number of lines or messages that wait to be interpreted."""

    peer: str

    def __len__(self) -> int: ...

    @property
    def cannot_be_slow(self) -> bool:
        """Whether so little waits that the next turn need not be measured."""

    def identify(self, identity: Identity) -> None:
        """Set the client's identity, which limits what is taken. Called again when the identity changes."""

    def skip(self, lines: int) -> None:
        """Count lines of the connection that were read elsewhere."""

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes. If the stream has to end here, return the last reply to the client."""

    def finish(self) -> None:
        """Take the orderly end of the stream."""

    def turn(self) -> Iterator[Any]:
        """Interpret what comes next, up to a turn's worth."""

    def clear(self) -> None:
        """Drop the input that waits."""

    def wait(self, seconds: float) -> bytes | None:
        """Add ``seconds`` to the age of what is unfinished. If that is too old, return the last reply to the client."""

    def forgive(self) -> None:
        """Restart the age of what is unfinished."""


class Peer(asyncio.Protocol, ABC):
    """A client of one port. If ``muted``, it is never answered."""

    advice: ClassVar[str] = ""
    """What the log advises if a client does not read its replies."""

    def __init__(
        self,
        state: State,
        port: Port,
        on_end: Callable[[Peer], None],
        stream: asyncio.StreamWriter,
        inbox: AnyInbox,
        muted: bool,
    ) -> None:
        self._stream = stream  # only kept alive: since Python 3.12 it closes its transport when it is collected
        self._state = state
        self._port = port
        self._on_end = on_end
        self._transport: asyncio.Transport
        self.credentials: Credentials  # set by connection_made
        self._inbox = inbox
        self._outbox = Outbox(muted)
        self._gate = Gate(self._on_gate_open)
        self._phase = Phase.SERVING
        self._eof = False  # the peer has closed its half
        self._share = max(1, state.config.queue_events // IN_FLIGHT_DIVISOR)
        self._reads = 0
        self._flush_scheduled = False
        self._linger_s = LINGER_S
        self._watch: asyncio.TimerHandle | None = None

    # --- what a subclass knows

    @abstractmethod
    def take(self, found: Any) -> None:
        """Act on one thing that the inbox has interpreted."""

    @abstractmethod
    def shut_down(self, failure: Failure) -> None:
        """End: the server is stopping, or its store has failed."""

    @property
    def has_more_to_say(self) -> bool:
        """Whether something other than replies will be written."""
        return False

    def say_no_more(self) -> None:
        """Write nothing but replies from now on."""

    def on_flushed(self) -> None:
        """Called when replies have been written."""

    # --- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has a class of its own
        self._gate.attach(self._transport)
        self.credentials = credentials.of(self._transport)
        name = self._transport.get_extra_info("peername")
        if name and self.credentials.address:
            self._inbox.peer = address.join(self.credentials.address, name[1])
        elif self.credentials.uid is not None:
            self._inbox.peer = f"uid {self.credentials.uid}"
        log.debug("%s: connected to the %s", self._inbox.peer, self._port.name)

    def data_received(self, data: bytes) -> None:
        self._reads += 1
        if self._phase >= Phase.ENDING:
            return
        if (last_reply := self._inbox.feed(data)) is not None:
            self._end(last_reply)
            return
        waiting = len(self._inbox)
        if waiting and self._gate.open and self._take_turn() and waiting < PIECE_LINES:
            self._let_more_come()

    def eof_received(self) -> bool:
        self._eof = True
        self._gate.end()
        self.finish_input()
        if self._gate.open:
            self._take_turn()
        self._close_when_done()
        return True  # keep our half open until everything is answered

    def connection_lost(self, exc: Exception | None) -> None:
        log.debug("%s: %s", self._inbox.peer, exc or "the connection has ended")
        self._phase = Phase.LOST
        self._stop_watch()
        self.say_no_more()
        self._mute()

    def pause_writing(self) -> None:
        self._gate.shut(Reason.REPLIES)
        self._start_watch()

    def resume_writing(self) -> None:
        if self._phase < Phase.CLOSING:
            self._stop_watch()
        self._flush_soon()
        self._gate.lift(Reason.REPLIES)

    # --- called by the server

    def refuse(self, last_reply: bytes, linger_s: float) -> None:
        """Tell the client why it is not served, and close."""
        self._linger_s = linger_s
        self._end(last_reply)

    def tick(self) -> None:
        """Called every TICK_S: end a client that leaves a line unfinished for too long, which takes up memory."""
        if not self._gate.open or self._eof or self._phase >= Phase.ENDING:
            self._inbox.forgive()
        elif (last_reply := self._inbox.wait(TICK_S)) is not None:
            self._end(last_reply)
        elif self._inbox:
            self._take_turn()

    def abort(self) -> None:
        """Drop the connection; what was read is stored all the same."""
        self._transport.abort()

    # --- in

    def finish_input(self) -> None:
        """Take the end of the stream."""
        if self._phase < Phase.ENDING:
            self.finish_inbox()

    def finish_inbox(self) -> None:
        """Tell the inbox that it has all that was sent."""
        self._inbox.finish()

    def _take_turn(self) -> bool:
        """Interpret what was read, up to a turn's worth; return whether any event in it was queued.

        Nothing is raised here, because a turn may also begin in code that serves other clients or makes commits.
        """
        try:
            return self._interpret()
        except Exception:  # a defect of ours: it ends this client, and harms nobody else
            self._state.peer_log.say(
                logging.ERROR, "%s: closed, because its input could not be processed:\n%s", self._inbox.peer,
                traceback.format_exc(),
            )  # fmt: skip
            self._inbox.clear()
            self.abort()
            return False

    def _interpret(self) -> bool:
        intake = self._state.intake
        waiting_before = intake.waiting_events
        # Asking for the processor time twice takes 2 % of the time that an event takes that comes alone
        # (bench/notebook.md).
        started_s = None if self._inbox.cannot_be_slow else time.thread_time()
        for found in self._inbox.turn():
            self.take(found)
        queued = intake.waiting_events > waiting_before
        self._push_back(queued, 0.0 if started_s is None else time.thread_time() - started_s)
        return queued

    def _submit(self, events: Events, settle: Callable[[Outcome], None]) -> None:
        self._state.intake.put(Submission(events, partial(self._settle_carefully, settle)))

    def _settle_carefully(self, settle: Callable[[Outcome], None], outcome: Outcome) -> None:
        try:
            settle(outcome)
        except Exception:  # a defect of ours: neither this client nor those told after it must wait for ever
            log.exception("%s: a reply failed", self._inbox.peer)
            self.abort()

    # --- out

    def _fill(self, place: Place, reply: bytes) -> None:
        self._outbox.fill(place, reply)
        if self._outbox.muted:
            self._progressed()
        else:
            self._flush_soon()

    def _flush_soon(self) -> None:
        # Once per turn of the loop: a commit settles many submissions, and one write carries all their replies.
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._outbox.muted or self._gate.is_shut_for(Reason.REPLIES):
            return
        data = self._outbox.take()
        if data and not self._transport.is_closing():
            self._transport.write(data)
        self._outbox.written()
        self.on_flushed()
        self._progressed()

    def _mute(self) -> None:
        """Give up every reply; events that are being stored are still counted until they are settled."""
        self._outbox.mute()
        self._gate.lift(Reason.REPLIES)
        self._progressed()

    # --- pressure

    def _push_back(self, queued: bool, took_s: float) -> None:
        # A client that sends only commands is not held up by a full intake, because the end of its stream would not be
        # seen until its turn comes.
        intake = self._state.intake
        if queued and intake.full and self._gate.shut(Reason.INTAKE):
            intake.when_room(partial(self._gate.lift, Reason.INTAKE))
        if self._outbox.unanswered >= self._share:
            self._gate.shut(Reason.SHARE)
        slow = took_s > SLOW_TURN_S
        if (slow or self._inbox) and self._gate.shut(Reason.TURN):
            lift = partial(self._gate.lift, Reason.TURN)
            if slow:
                self._state.slow_turns.rest(took_s, lift)
            else:
                asyncio.get_running_loop().call_later(0, lift)

    def _let_more_come(self) -> None:
        """Read the client's next small pieces together, because their events would only wait for a commit."""
        if self._state.intake.waiting_events >= GATHER_EVENTS and self._gate.shut(Reason.GATHERING):
            asyncio.get_running_loop().call_later(GATHER_S, self._gate.lift, Reason.GATHERING)

    def _on_gate_open(self) -> None:
        self._take_turn()
        self._close_when_done()

    def _progressed(self) -> None:
        if self._outbox.unanswered <= self._share // LOW_WATER_DIVISOR:
            self._gate.lift(Reason.SHARE)
        self._close_when_done()

    # --- the end

    def _end(self, last_reply: bytes) -> None:
        """Answer what came before, write ``last_reply``, close our half; drop what the peer still sends."""
        self._phase = max(self._phase, Phase.ENDING)
        self._inbox.clear()
        if not self._outbox.muted:
            self._fill(self._outbox.reserve(0), last_reply)
        self._close_when_done()

    def _close_when_done(self) -> None:
        """Take the next step towards the end, once all that was read is interpreted and all replies are out."""
        if self._inbox or not self._outbox.empty:
            return
        over = (self._eof and not self.has_more_to_say) or self._phase >= Phase.REFUSING
        if self._phase == Phase.LOST:
            self._on_end(self)
            return
        if self._transport.is_closing() or not over:
            return
        self.say_no_more()  # nothing may be written after the end of our half
        if self._outbox.muted:
            self._transport.abort()
        elif self._eof:
            self._phase = Phase.CLOSING
            self._transport.close()
            self._start_watch()
        elif self._phase < Phase.CLOSING:
            self._phase = Phase.CLOSING
            self._close_our_half()
            self._start_watch()

    def _close_our_half(self) -> None:
        with contextlib.suppress(OSError):  # the peer has reset the connection, and we are about to be told
            self._transport.write_eof()

    def _close_in_silence(self) -> None:
        """Close our half at once, and read on until the peer has seen that.

        Some peers look for it only when they have something to send (rsyslog), so a peer that sends nothing for
        QUIET_S is dropped.
        """
        if not self._transport.is_closing():
            self._close_our_half()
            self._abort_when_quiet(reads_before=-1)

    def _abort_when_quiet(self, reads_before: int) -> None:
        if self._reads == reads_before and self._gate.open:
            self.abort()
        elif self._phase < Phase.LOST:
            asyncio.get_running_loop().call_later(QUIET_S, self._abort_when_quiet, self._reads)

    def _start_watch(self) -> None:
        self._stop_watch()
        waiting = self._transport.get_write_buffer_size()
        delay_s = REPLY_DEADLINE_S if waiting else self._linger_s
        answers_wait = self._outbox.answers_wait
        self._watch = asyncio.get_running_loop().call_later(delay_s, self._look, waiting, answers_wait)

    def _stop_watch(self) -> None:
        if self._watch:
            self._watch.cancel()
            self._watch = None

    def _look(self, waiting_before: int, answers_waited: bool) -> None:
        """A deadline has passed: a peer that has read nothing since is muted, or dropped if this is the end."""
        if self._transport.get_write_buffer_size() < waiting_before:
            self._start_watch()
        elif self._phase >= Phase.CLOSING:
            self._transport.abort()
        else:
            self._give_up_replies()

    def _give_up_replies(self) -> None:
        self._state.stats.muted += 1
        self._state.peer_log.say(
            logging.WARNING, f"%s does not read its replies: muted, but its events are still stored. {self.advice}",
            self._inbox.peer,
        )  # fmt: skip
        self.say_no_more()
        self._mute()
