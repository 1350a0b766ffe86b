"""One client: lines in, replies out in order.

An ``asyncio.Protocol``, not a task with a stream: after a reset a StreamReader throws away complete lines it already
holds, and awaiting ``drain()`` before reading on deadlocks against a peer that does not read.

Rules that hold here:

- Replies leave in the order of their lines: each line gets a place in one FIFO, which a commit or a command fills.
  A command starts when it is first in line, that is, when everything sent before it has been committed.
- Reading is paused, never awaited: while the intake is full, while this client has its share of it in flight, while
  it does not read its replies. Nor does it get more than a share's worth of lines, or one command, judged in one turn
  of the loop: the others want theirs. Lines that have to wait for that are kept as they came.
- While many events wait for their commit, whoever has sent few lines is read on a little later: more will have come.
- Only this object writes to its transport, and never to a closing one (uvloop raises).
- What was read is stored, whatever becomes of the connection; only an unterminated last line is dropped by a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from enum import Flag, auto
from functools import partial
from itertools import islice
from typing import cast

from aggregator import admin, protocol
from aggregator.admin import BadCommand, View
from aggregator.config import (
    FEWEST_PIECE_LINES,
    GATHER_EVENTS,
    GATHER_S,
    IN_FLIGHT_DIVISOR,
    LINGER_S,
    LOW_WATER_DIVISOR,
    PIECE_LINES,
    QUIET_S,
    REPLY_DEADLINE_S,
    TICK_S,
    TURN_LINES,
)
from aggregator.event import Event, Events, parse_plain
from aggregator.intake import Commit, Failure, Outcome, Submission
from aggregator.peer_log import PeerLog
from aggregator.protocol import Command, LineSplitter, Rejection, Reply
from aggregator.store import StorageBusy, StorageFailed, StorageFull

log = logging.getLogger("aggregator")

_BYE = protocol.encode(protocol.ok({"bye": True}))


class _Blocked(Flag):
    """Why reading is paused."""

    INTAKE = auto()  # the intake is full
    SHARE = auto()  # this client has as many unanswered lines as one may have
    REPLIES = auto()  # this client does not read its replies
    TURN = auto()  # this client has had its turn
    GATHERING = auto()  # what this client sends comes in small pieces


class _Place:
    """A place in the FIFO of replies, for so many lines; ``command`` fills it once it is the first in line."""

    __slots__ = ("command", "lines", "reply")

    def __init__(
        self,
        lines: int,
        reply: bytes | None = None,
        command: Callable[[_Place], Coroutine[None, None, None]] | None = None,
    ) -> None:
        self.lines = lines
        self.reply = reply
        self.command = command


class Connection(asyncio.Protocol):
    """A client of the acked port, or of the silent port, where not a byte is written."""

    def __init__(
        self,
        view: View,
        peer_log: PeerLog,
        silent: bool,
        on_end: Callable[[Connection], None],
        stream: asyncio.StreamWriter,
    ) -> None:
        self._stream = stream  # kept alive only: since Python 3.12 it closes the transport when it is collected
        self._view = view
        self._log = peer_log
        self._refusals = peer_log if silent else None
        self._on_end = on_end
        self._transport: asyncio.Transport
        self._peer = ""
        self._splitter = LineSplitter(view.config.max_line_bytes)
        self._line_number = 0
        self._share = max(1, view.config.queue_events // IN_FLIGHT_DIVISOR)
        self._unanswered = 0  # lines and batch members read, and not yet replied to (or settled, when not replying)
        self._places: deque[_Place] = deque()
        self._replying = not silent
        self._flush_scheduled = False
        self._blocked = _Blocked(0)
        self._lines: deque[bytes | None] = deque()  # read, but not yet judged
        self._reads = 0
        self._unfinished_ticks = 0  # for how many ticks the same line has been unfinished
        self._eof = False  # the peer has closed its half
        self._running: asyncio.Task[None] | None = None  # the command that is being carried out
        self._refusing: Failure | None = None  # the server is stopping: answer events with this
        self._ending = False  # our last reply is queued: whatever else arrives is dropped
        self._linger_s = LINGER_S
        self._closing = False  # our half is closed, or will be when the last reply is out
        self._lost = False
        self._watch: asyncio.TimerHandle | None = None

    # --- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has a class of its own
        name = self._transport.get_extra_info("peername")
        self._peer = f"{name[0]}:{name[1]}" if name else "a client"
        high_water = self._view.config.reply_buffer_bytes
        self._transport.set_write_buffer_limits(high=high_water, low=high_water // LOW_WATER_DIVISOR)

    def data_received(self, data: bytes) -> None:
        self._reads += 1
        if self._ending:
            return
        lines = self._splitter.feed(data)
        if lines:
            self._lines += lines
            self._unfinished_ticks = 0
        if self._splitter.foreign_reply:
            self._view.stats.connections_refused += 1
            self._log.say(logging.INFO, "%s speaks HTTP or TLS: closed", self._peer)
            self._end(self._splitter.foreign_reply)
        elif self._lines and not self._blocked:
            few = len(self._lines) < PIECE_LINES
            if self._take_lines() and few:
                self._let_more_come()

    def eof_received(self) -> bool:
        self._eof = True
        if not self._ending:
            self._lines += self._splitter.finish()
        if not self._blocked:
            self._take_lines()
        self._close_when_done()
        return True  # keep our half open until everything is answered

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            log.debug("%s: %s", self._peer, exc)
        self._lost = True
        self._stop_watch()
        self._stop_replying()

    def pause_writing(self) -> None:
        self._block(_Blocked.REPLIES)
        self._start_watch()

    def resume_writing(self) -> None:
        if not self._closing:
            self._stop_watch()
        self._flush_soon()
        self._unblock(_Blocked.REPLIES)

    # --- called by the server

    def refuse(self, failure: Failure, linger_s: float) -> None:
        """Say why this client is not served, and close."""
        self._linger_s = linger_s
        self._end(protocol.encode(protocol.error(failure.code, failure.detail)))

    def tick(self) -> None:
        """TICK_S have passed: end a client that leaves a line unfinished for too long, for it is held in memory."""
        if not self._splitter.unfinished or self._blocked or self._eof or self._ending:
            self._unfinished_ticks = 0
            return
        self._unfinished_ticks += 1
        timeout_s = self._view.config.line_timeout_s
        if self._unfinished_ticks * TICK_S > timeout_s:  # the first tick came sooner than TICK_S after its first byte
            self._unfinished(timeout_s)

    def _unfinished(self, timeout_s: float) -> None:
        line_number = self._line_number + 1
        self._view.stats.received += 1
        self._view.stats.errors += 1
        self._log.say(
            logging.WARNING, "%s left its line %d unfinished for %g s: closed", self._peer, line_number, timeout_s
        )
        detail = f"line {line_number} is still unfinished after {timeout_s:g} s; send it again"
        self._end(protocol.encode(protocol.error("bad_line", detail)))

    def shut_down(self, failure: Failure) -> None:
        """Answer what was read, then close our half; events that arrive until then are answered with ``failure``.

        A silent client has our half of the close at once, and may go on sending until it has seen that. Some look for
        it only when they have something to send (rsyslog), so one that sends nothing for a while is closed.
        """
        if self._refusals:
            if not self._transport.is_closing():
                self._close_our_half()
                self._abort_when_quiet(reads_before=-1)
            return
        while self._lines:
            self._take_lines()
        self._refusing = failure
        self._close_when_done()

    def _abort_when_quiet(self, reads_before: int) -> None:
        if self._reads == reads_before and not self._blocked:
            self.abort()
        elif not self._lost:
            asyncio.get_running_loop().call_later(QUIET_S, self._abort_when_quiet, self._reads)

    def abort(self) -> None:
        """Drop the connection; what was read is stored all the same."""
        self._transport.abort()

    # --- lines in

    def _take_lines(self) -> bool:
        """Judge what was read, up to a turn's worth; return whether an event among it was queued."""
        budget = TURN_LINES
        waiting_before = self._view.intake.events
        events = Events()  # events that follow each other go into the intake as one submission
        singly = 0  # so many lines are judged each by itself, for among them is one that is no plain event
        while self._lines and budget > 0:
            if not singly:
                plain = self._take_plain(budget)
                if plain:
                    events += plain
                    budget -= len(plain)
                else:
                    singly = PIECE_LINES
                continue
            singly -= 1
            line = self._lines.popleft()
            self._line_number += 1
            budget -= 1
            if line == b"":
                continue
            found = protocol.parse(line) if line else protocol.too_long(self._view.config.max_line_bytes)
            if isinstance(found, Event):
                events.append(found)
                continue
            self._submit(events)
            events = Events()
            if isinstance(found, Rejection):
                self._reject(found)
            elif isinstance(found, Command):
                self._take_command(found)
                budget = 0  # splitting its words took as long as judging a thousand events
            else:
                self._submit_batch(found)
                budget -= len(found)
        self._submit(events)
        queued = self._view.intake.events > waiting_before
        self._push_back(queued)
        return queued

    def _take_plain(self, most: int) -> Events | None:
        """The next lines, where there are several and all are plain events; else nothing is taken."""
        piece = list(islice(self._lines, min(PIECE_LINES, most)))
        plain = parse_plain(piece) if len(piece) >= FEWEST_PIECE_LINES else None
        if plain:
            for _ in piece:
                self._lines.popleft()
            self._line_number += len(piece)
        return plain

    def _submit(self, events: Events) -> None:
        if events:
            self._view.stats.received += len(events)
            place = self._add(_Place(len(events)))
            self._queue(events, partial(self._settled, place, events))

    def _submit_batch(self, members: list[Event | Rejection]) -> None:
        stats = self._view.stats
        stats.received += len(members)
        events = Events.of(member for member in members if isinstance(member, Event))
        for member in members:
            if isinstance(member, Rejection):
                stats.rejected += 1
                if self._refusals:
                    self._refusals.refused(self._peer, self._line_number, member)
        place = self._add(_Place(len(members)))
        settle = partial(self._batch_settled, place, members, self._line_number)
        if events:
            self._queue(events, settle)
        else:
            settle(Commit(0, {}, 0))

    def _queue(self, events: Events, settle: Callable[[Outcome], None]) -> None:
        if self._refusing:
            self._view.stats.errors += len(events)
            settle(self._refusing)
        else:
            carefully = partial(self._settle_carefully, settle)
            self._view.intake.put(Submission(events, carefully))

    def _reject(self, rejection: Rejection) -> None:
        self._view.stats.received += 1
        self._view.stats.rejected += 1
        if self._refusals:
            self._refusals.refused(self._peer, self._line_number, rejection)
        else:
            self._add_reply(protocol.rejected(rejection, self._line_number))

    def _take_command(self, command: Command) -> None:
        if self._refusals:
            self._reject(Rejection("not_allowed", "the silent port answers no commands"))
        elif command.word == "QUIT" and not command.arguments:
            self._end(_BYE)
        elif self._replying:
            self._add(_Place(1, command=partial(self._carry_out, command, self._line_number)))
            self._flush_soon()

    # --- replies out

    def _add(self, place: _Place) -> _Place:
        self._unanswered += place.lines
        if self._replying:
            self._places.append(place)
        return place

    def _add_reply(self, reply: Reply) -> None:
        if self._replying:
            self._add(_Place(1, protocol.encode(reply)))
            self._flush_soon()

    def _settle_carefully(self, settle: Callable[[Outcome], None], outcome: Outcome) -> None:
        try:
            settle(outcome)
        except Exception:  # a defect of ours: this client must not wait for ever, nor those who are told after it
            log.exception("%s: a reply failed", self._peer)
            self.abort()

    def _settled(self, place: _Place, events: Events, outcome: Outcome) -> None:
        if self._replying:
            self._fill(place, _encoded_replies(events, outcome))
        else:
            self._answered(place)

    def _batch_settled(
        self, place: _Place, members: list[Event | Rejection], line_number: int, outcome: Outcome
    ) -> None:
        if not self._replying:
            self._answered(place)
            return
        replies = iter(_replies([member for member in members if isinstance(member, Event)], outcome))
        results = [
            next(replies) if isinstance(member, Event) else protocol.rejected(member, line_number) for member in members
        ]
        self._fill(place, protocol.encode(protocol.batch(results)))

    def _fill(self, place: _Place, reply: bytes) -> None:
        place.reply = reply
        self._flush_soon()

    def _flush_soon(self) -> None:
        # Once per turn of the loop: a commit settles many submissions, and one write carries all their replies.
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if not self._replying or _Blocked.REPLIES in self._blocked:
            return
        replies = []
        while self._places:
            place = self._places[0]
            if place.reply is None:
                if place.command and not self._running:
                    self._running = asyncio.get_running_loop().create_task(place.command(place))
                break
            self._places.popleft()
            self._unanswered -= place.lines
            replies.append(place.reply)
        if replies and not self._transport.is_closing():
            self._transport.write(b"".join(replies))
        self._progressed()

    async def _carry_out(self, command: Command, line_number: int, place: _Place) -> None:
        try:
            reply = protocol.ok(await admin.answer(command.word, command.arguments, self._view))
        except BadCommand as error:
            self._view.stats.received += 1
            self._view.stats.rejected += 1
            reply = protocol.rejected(Rejection("bad_command", str(error)), line_number)
        except (StorageFull, StorageBusy, StorageFailed) as error:
            reply = protocol.error("storage", str(error))
        except Exception:  # a defect of ours: this client must not wait for ever, and nobody else is harmed
            if not self._lost:  # else the server is stopping, and its database is closed
                log.exception("%s: %s failed", self._peer, command.word)
            self.abort()
            return
        self._running = None
        self._fill(place, protocol.encode(reply))

    def _stop_replying(self) -> None:
        """Give up every reply; events that are being stored are still counted until they are settled."""
        self._replying = False
        self._unanswered -= sum(place.lines for place in self._places if place.reply or place.command)
        self._places.clear()
        self._unblock(_Blocked.REPLIES)
        self._progressed()

    # --- pressure

    def _push_back(self, queued: bool) -> None:
        # Who only asks is not held up, for then the end of its stream would not be seen until its turn comes.
        if queued and self._view.intake.full and self._block(_Blocked.INTAKE):
            self._view.intake.when_room(partial(self._unblock, _Blocked.INTAKE))
        if self._unanswered >= self._share:
            self._block(_Blocked.SHARE)
        if self._lines and self._block(_Blocked.TURN):
            asyncio.get_running_loop().call_soon(self._unblock, _Blocked.TURN)

    def _let_more_come(self) -> None:
        """Events that come in small pieces would only wait for a commit: read the next few together."""
        if self._view.intake.events >= GATHER_EVENTS and self._block(_Blocked.GATHERING):
            asyncio.get_running_loop().call_later(GATHER_S, self._unblock, _Blocked.GATHERING)

    def _block(self, reason: _Blocked) -> bool:
        """Stop reading for this reason too; return whether it is a new one."""
        if reason in self._blocked:
            return False
        if not self._blocked and not self._transport.is_closing():
            self._transport.pause_reading()
        self._blocked |= reason
        return True

    def _unblock(self, reason: _Blocked) -> None:
        if reason not in self._blocked:
            return
        self._blocked &= ~reason
        if not self._blocked:
            self._take_lines()
        if not self._blocked and not self._eof and not self._transport.is_closing():
            self._transport.resume_reading()
        self._close_when_done()

    def _answered(self, place: _Place) -> None:
        self._unanswered -= place.lines
        self._progressed()

    def _progressed(self) -> None:
        if self._unanswered <= self._share // LOW_WATER_DIVISOR:
            self._unblock(_Blocked.SHARE)
        self._close_when_done()

    # --- the end

    def _end(self, last_reply: bytes) -> None:
        """Answer what came before, write ``last_reply``, close our half; drop what the peer still sends."""
        self._ending = True
        self._lines.clear()
        if self._replying:
            self._add(_Place(0, last_reply))
            self._flush_soon()
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self._lines or self._places:
            return
        if self._lost:
            self._on_end(self)
        elif self._transport.is_closing():
            return
        elif not self._replying:
            if self._eof or self._ending or self._refusing:
                self._transport.abort()
        elif self._eof:
            self._closing = True
            self._transport.close()
            self._start_watch()
        elif (self._ending or self._refusing) and not self._closing:
            self._closing = self._ending = True
            self._close_our_half()
            self._start_watch()

    def _close_our_half(self) -> None:
        with contextlib.suppress(OSError):  # the peer has reset the connection, and we are about to be told
            self._transport.write_eof()

    def _start_watch(self) -> None:
        self._stop_watch()
        waiting = self._transport.get_write_buffer_size()
        delay_s = REPLY_DEADLINE_S if waiting else self._linger_s
        self._watch = asyncio.get_running_loop().call_later(delay_s, self._look, waiting)

    def _stop_watch(self) -> None:
        if self._watch:
            self._watch.cancel()
            self._watch = None

    def _look(self, waiting_before: int) -> None:
        """A deadline has passed: a peer that has read nothing since is muted, or dropped if this is the end."""
        if self._transport.get_write_buffer_size() < waiting_before:
            self._start_watch()
        elif self._closing:
            self._transport.abort()
        else:
            self._view.stats.muted += 1
            self._log.say(
                logging.WARNING,
                "%s does not read its replies: muted; its events are stored. The silent port is for such senders",
                self._peer,
            )
            self._stop_replying()


def _replies(events: Iterable[Event], outcome: Outcome) -> list[Reply]:
    """The replies to events that were committed together, in their order."""
    if isinstance(outcome, Failure):
        return [protocol.error(outcome.code, outcome.detail, event) for event in events]
    duplicates = outcome.duplicates
    replies = []
    for i, event in enumerate(events):
        seq = duplicates.get(outcome.offset + i)
        replies.append(protocol.stored(event, outcome.first_seq + i) if seq is None else protocol.duplicate(event, seq))
    return replies


def _encoded_replies(events: Events, outcome: Outcome) -> bytes:
    if isinstance(outcome, Failure):
        return b"".join(map(protocol.encode, _replies(events, outcome)))
    return protocol.encode_acks(events, outcome.first_seq, outcome.duplicates, outcome.offset)
