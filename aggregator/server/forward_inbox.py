"""What comes in from one Forward client: bytes to messages, messages to chunks of events, a turn at a time.

A chunk is given out when all of it has been read: nothing of one that is broken, or too long, is stored.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from aggregator.access.identity import Identity
from aggregator.server.port import Port
from aggregator.server.state import State
from aggregator.wire.forward import NotForward, entries
from aggregator.wire.forward.events import Conversion, Fields
from aggregator.wire.forward.framing import Message, Splitter
from aggregator.wire.forward.handshake import HANDSHAKE_BYTES, Handshake
from aggregator.wire.meaning import TURN_BYTES, TURN_LINES

log = logging.getLogger("aggregator")

ENTRIES_AT_ONCE = TURN_LINES // 10
"""After so many entries the bytes of a turn are looked at."""


@dataclass(slots=True)
class LetIn:
    """The answer to a client's PING, and whether it may go on."""

    pong: bytes
    well: bool


class ForwardInbox:
    """The messages of one client of ``port`` that wait; its length is their number."""

    def __init__(self, state: State, port: Port) -> None:
        self.peer = "a client"
        """The client's name in the log, with its port."""
        self._stats = state.stats
        self._log = state.peer_log
        self._port = port
        self._config = config = state.config
        self._max_line_bytes = config.max_line_bytes
        self.publisher: Identity | None = None
        """Whom the chunks are from; None: somebody who may publish to every topic."""
        self._fields = Fields(config.forward_id, config.forward_source)
        self._handshake = Handshake(state.forward_key, socket.gethostname()) if state.forward_key else None
        self._splitter = Splitter(HANDSHAKE_BYTES if self._handshake else config.forward_chunk_bytes)
        self._messages: deque[Message | NotForward] = deque()
        self._conversion: Conversion | None = None  # of the message that is being read
        self._unfinished_s = 0.0  # for how long the same message has been unfinished

    def __len__(self) -> int:
        return len(self._messages) + (self._conversion is not None)

    @property
    def has_little(self) -> bool:
        """Whether so little waits that to interpret it cannot take long: not known of messages."""
        return False

    @property
    def wants_key(self) -> bool:
        """Whether the client has still to show that it knows the shared key."""
        return self._handshake is not None

    def identify(self, identity: Identity) -> None:
        """It is known whom the chunks are from."""
        self.publisher = None if identity.publish.every else identity
        self._max_line_bytes = identity.max_line_bytes or self._config.max_line_bytes

    def skip(self, lines: int) -> None:
        """Forward has no lines."""

    def hello(self) -> bytes | None:
        """What is sent first, where there is a shared key."""
        return self._handshake.hello() if self._handshake else None

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes. What ends the stream is given out in its turn, so there are no last words here."""
        was_broken = self._splitter.broken
        if messages := self._splitter.feed(data):
            self._messages += messages
            self._unfinished_s = 0.0
        if self._splitter.broken and not was_broken:
            self._messages.append(self._splitter.broken)
        return None

    def finish(self) -> None:
        """Take the orderly end of the stream."""
        if self._splitter.unfinished:
            self._log.say(
                logging.WARNING, f"{self._port.name}: %s ended within a message, which is not stored", self.peer
            )

    def turn(self) -> Iterator[Conversion | LetIn | NotForward]:
        """Read what waits, up to a turn's worth; give out the chunks that are complete."""
        budget, size = TURN_LINES, 0
        try:
            while len(self) and budget > 0 and size < TURN_BYTES:
                if not self._conversion:
                    message = self._messages.popleft()
                    if isinstance(message, NotForward):
                        raise message
                    if self._handshake:
                        yield self._let_in(*self._handshake.answer(message))
                        continue
                    self._conversion = self._begin(message)
                conversion = self._conversion
                events_before, bytes_before = len(conversion.events), conversion.events.size_bytes
                ended = conversion.proceed(min(budget, ENTRIES_AT_ONCE))
                budget -= max(1, len(conversion.events) - events_before)
                size += conversion.events.size_bytes - bytes_before
                if ended:
                    self._conversion = None
                    yield conversion
        except NotForward as error:
            self.clear()
            yield error

    def clear(self) -> None:
        """Drop the messages that wait."""
        self._messages.clear()
        self._conversion = None

    def wait(self, seconds: float) -> bytes | None:
        """Seconds have passed; end the client if it has left a message, or its handshake, unfinished for too long."""
        if not self._splitter.unfinished and not self._handshake:
            self.forgive()
            return None
        self._unfinished_s += seconds
        if self._unfinished_s <= self._config.line_timeout_s:
            return None
        what = "its handshake" if self._handshake else "a message"
        self.refused(f"it left {what} unfinished for {self._config.line_timeout_s:g} s")
        return b""

    def forgive(self) -> None:
        """Count the age of what is unfinished from now on: the client could not end it, or need not."""
        self._unfinished_s = 0.0

    def refused(self, why: str) -> None:
        """Count and log that the connection is closed because of what the client sent."""
        self._stats.connections_refused += 1
        self._log.say(logging.WARNING, f"{self._port.name}: %s: closed: %s", self.peer, why)

    def _begin(self, message: Message) -> Conversion:
        config = self._config
        chunk = entries.read(message, config.forward_chunk_bytes, self._max_line_bytes)
        return Conversion(chunk, self._host, self._fields, config.forward_chunk_bytes * entries.MAX_GROWTH)

    @property
    def _host(self) -> str:
        host = self.peer.rpartition(":")[0].strip("[]")
        return host or "unknown"

    def _let_in(self, pong: bytes, well: bool) -> LetIn:
        if well:
            self._handshake = None
            self._splitter.max_bytes = self._config.forward_chunk_bytes
        return LetIn(pong, well)
