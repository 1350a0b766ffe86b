"""A client of a port that takes lines: lines in, replies out, commands, and deliveries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from aggregator.event import Event, Events
from aggregator.server import commands, outcomes
from aggregator.server.asker import Refused
from aggregator.server.authenticated_peer import AuthenticatedPeer
from aggregator.server.deliveries import Deliveries
from aggregator.server.first_line import FirstLine
from aggregator.server.inbox import Inbox
from aggregator.server.intake import LOW_WATER_DIVISOR, Outcome
from aggregator.server.outbox import Place
from aggregator.server.peer import Peer, Phase
from aggregator.server.port import Port
from aggregator.server.queries import BadCommand
from aggregator.server.state import State
from aggregator.server.tcp import is_gone
from aggregator.storage.engine import Commit, StorageError, StorageFull
from aggregator.wire import Failure, Rejection, Status, Word, replies
from aggregator.wire.meaning import Command
from aggregator.wire.replies import Reply

log = logging.getLogger("aggregator")


class Connection(AuthenticatedPeer):
    """A client of a port that takes lines."""

    advice = "The silent port is for such senders"

    _inbox: Inbox

    def __init__(self, state: State, port: Port, on_end: Callable[[Peer], None], stream: asyncio.StreamWriter) -> None:
        super().__init__(state, port, on_end, stream, Inbox(state, port), muted=not port.replies)
        self._first_line = FirstLine(text=False)
        self._deliveries: Deliveries
        self._no_commands: Failure | None = None  # once it is set, the answer to every command
        self._refusal: Failure | None = None  # from REFUSING on, the answer to every event
        self._running: asyncio.Task[None] | None = None  # the command that is being carried out

    # --- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        high_water = self._state.config.reply_buffer_bytes
        buffer = (high_water, high_water // LOW_WATER_DIVISOR)
        self._deliveries = Deliveries(self._inbox.peer, self.caller, self._state.feed, self._transport, buffer)
        self._deliveries.on_over = self._close_when_done

    def connection_lost(self, exc: Exception | None) -> None:
        if self._running:
            self._running.cancel()  # nobody waits for its answer any more
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._deliveries.pause()
        super().pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._deliveries.resume()

    # --- called by the server

    def tick(self) -> None:
        """Drop a client that only reads and is gone, because nothing else would show that it is gone."""
        is_only_written_to = self._deliveries.subscription or self._running
        if is_only_written_to and is_gone(self._transport.get_extra_info("socket")):
            self.abort()
        else:
            super().tick()

    def shut_down(self, failure: Failure) -> None:
        """Answer what was read, then close our half; events that arrive until then are answered with ``failure``.

        On a silent port our half is closed at once, and the client may go on sending until it has seen that.
        """
        self.lift_rate()
        if not self._port.replies:
            self._close_in_silence()
            return
        while self._inbox:
            self._take_turn()
        self._refusal = failure
        self._phase = max(self._phase, Phase.REFUSING)
        self._close_when_done()

    def reconnect(self, failure: Failure) -> None:
        """End as at SIGTERM. Nothing more is read from the store for this client."""
        self._read_no_more(failure)
        super().reconnect(failure)

    def disconnect(self, failure: Failure) -> None:
        """End a client that may do nothing any more. Nothing more is read from the store for it either."""
        self._read_no_more(failure)
        super().disconnect(failure)

    def _read_no_more(self, failure: Failure) -> None:
        self._no_commands = failure
        if subscription := self._deliveries.subscription:
            self._state.feed.fail(subscription, failure)
        if self._running and (place := self._outbox.command):
            self._running.cancel()
            self._running = None
            self._fill(place, replies.encode(replies.error(failure)))

    def reading_changed(self) -> None:
        """If the client is reading, make it connect again, so that it reads under the new rules."""
        if self._deliveries.subscription or self._running:
            assert self.caller.identity
            self.reconnect(replies.permissions_changed(self.caller.identity.name))

    def welcome(self) -> None:
        """Tell the client its identity and what it may do."""
        identity = self.caller.identity
        assert identity
        if self._port.replies:
            self._answer(replies.ok({"identity": identity.name, **self.caller.permissions}))

    # --- lines in

    def finish_inbox(self) -> None:
        """Take an unterminated last line too, unless it may be cut."""
        if self._transport.get_extra_info("is_cut") and isinstance(self._inbox, Inbox):
            self._inbox.cut()
        super().finish_inbox()

    def take(self, found: Events | list[Event | Rejection] | Command | Rejection | Failure) -> None:
        """Act on what one or more lines mean."""
        if isinstance(found, Events):
            self._submit_events(found)
        elif isinstance(found, Rejection):
            self._reject(found)
        elif isinstance(found, Command):
            self._take_command(found)
        elif isinstance(found, Failure):
            self._answer(replies.error(found))
        else:
            self._submit_batch(found)

    def _submit_events(self, events: Events) -> None:
        self._state.stats.received += len(events)
        place = self._outbox.reserve(len(events))
        self._queue(events, partial(self._settled, place, events))

    def _submit_batch(self, members: list[Event | Rejection]) -> None:
        self._state.stats.received += len(members)
        events = Events.of(member for member in members if isinstance(member, Event))
        for member in members:
            if isinstance(member, Rejection):
                self._inbox.count_rejection(member, self._inbox.line_number)
        self.count(len(members) - len(events))
        place = self._outbox.reserve(len(members))
        settle = partial(self._batch_settled, place, members, self._inbox.line_number)
        if events:
            self._queue(events, settle)
        else:
            settle(Commit((), {}, 0))

    def _queue(self, events: Events, settle: Callable[[Outcome], None]) -> None:
        if self._refusal:
            self._state.stats.errors += len(events)
            settle(self._refusal)
        else:
            self._submit(events, settle)

    def _reject(self, rejection: Rejection) -> None:
        self.count(1)
        self._state.stats.received += 1
        self._inbox.count_rejection(rejection, self._inbox.line_number)
        self._answer(replies.rejected(rejection, self._inbox.line_number))

    def _take_command(self, command: Command) -> None:
        if not self._port.replies:
            self._reject(replies.no_commands_here())
        elif command.word is Word.QUIT:
            self._end(replies.BYE)
        elif not self._outbox.muted:
            self.count(1)
            self._outbox.reserve(1, partial(self._carry_out, command, self._inbox.line_number))
            self._flush_soon()

    # --- replies out

    def _answer(self, reply: Reply) -> None:
        if not self._outbox.muted:
            self._fill(self._outbox.reserve(1), replies.encode(reply))

    def _settled(self, place: Place, events: Events, outcome: Outcome) -> None:
        self._fill(place, b"" if self._outbox.muted else outcomes.encoded(events, outcome))

    def _batch_settled(
        self, place: Place, members: list[Event | Rejection], line_number: int, outcome: Outcome
    ) -> None:
        muted = self._outbox.muted
        self._fill(place, b"" if muted else outcomes.encoded_batch(members, line_number, outcome))

    def on_flushed(self) -> None:
        """Start the command that is first in the outbox, if it is not running yet."""
        if (place := self._outbox.command) and place.command and not self._running:
            self._running = asyncio.get_running_loop().create_task(place.command(place))

    async def _carry_out(self, command: Command, line_number: int, place: Place) -> None:
        try:
            if self._no_commands:
                raise Refused(self._no_commands)
            reply = replies.ok(await commands.answer(command.word, command.arguments, self._state, self._deliveries))
        except BadCommand as error:
            self._state.stats.received += 1
            self._inbox.count_rejection(error.rejection, line_number, command.typed)
            reply = replies.rejected(error.rejection, line_number)
        except Refused as refused:
            reply = replies.error(refused.failure)
        except StorageFull as error:
            reply = replies.error(replies.storage_full(str(error)))
        except StorageError as error:
            reply = replies.error(replies.cannot_read(str(error)))
        except Exception:  # a defect of ours: this client must not wait for ever, and nobody else is harmed
            if self._phase < Phase.LOST:  # else the server is stopping, and its database is closed
                log.exception("%s: %s failed", self._inbox.peer, command.word)
            self.abort()
            return
        self._running = None
        if command.word is Word.SUBSCRIBE and reply["status"] is Status.OK:
            place.then = self._deliveries.begin
            if self._outbox.muted:
                self.say_no_more()
        self._fill(place, replies.encode(reply))

    # --- deliveries

    @property
    def has_more_to_say(self) -> bool:
        """Whether there is a subscription."""
        return self._deliveries.subscription is not None

    def say_no_more(self) -> None:
        """End the subscription, and begin no other."""
        self._deliveries.stopped = True
        self._deliveries.end()

    def _look(self, waiting_before: int, answers_waited: bool) -> None:
        if self._deliveries.last_subscription and not answers_waited and self._phase < Phase.CLOSING:
            self._start_watch()  # deliveries may wait for ever, because the store has the rest of them
        else:
            super()._look(waiting_before, answers_waited)

    def _give_up_replies(self) -> None:
        super()._give_up_replies()
        if self._deliveries.last_subscription:
            self._close_our_half()  # so that the client sees that its deliveries have ended
