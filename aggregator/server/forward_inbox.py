"""The input of one Forward client: bytes to messages, messages to chunks of events, a turn at a time.

A chunk is given out when all of it has been read, so nothing is stored of a chunk that is broken or too long.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from aggregator.access.identity import NOBODY, Identity
from aggregator.address import host_of
from aggregator.server.port import Port
from aggregator.server.state import State
from aggregator.wire.forward import NotForward, entries
from aggregator.wire.forward.events import Conversion, Fields
from aggregator.wire.forward.framing import Message, Splitter
from aggregator.wire.forward.handshake import HANDSHAKE_BYTES, Handshake
from aggregator.wire.meaning import TURN_BYTES, TURN_LINES

log = logging.getLogger("aggregator")

ENTRIES_AT_ONCE: Final = TURN_LINES // 10
EVENT_BYTES_AT_ONCE: Final = TURN_BYTES // 4
"""After this many entries, or bytes of events, the budget of the turn is checked."""

SLICE_BYTES: Final = 4 * 1024
"""How much input is split into messages at a time. A message may have three bytes, and each message costs 10 µs."""


@dataclass(slots=True)
class LetIn:
    """The answer to a client's PING, and whether the client may go on."""

    pong: bytes
    well: bool


class ForwardInbox:
    """The waiting messages of one client of ``port``; its length is their number."""

    def __init__(self, state: State, port: Port) -> None:
        self.peer = "a client"
        """The client's name in the log, with its port."""
        self._stats = state.stats
        self._log = state.peer_log
        self._port = port
        self._config = config = state.config
        self._max_line_bytes = config.max_line_bytes
        self.publisher: Identity | None = NOBODY
        """The identity that the chunks are from; None: one that may publish to every topic."""
        self._fields = Fields(config.forward_id, config.forward_source)
        key = state.forward_key.key
        self._handshake = Handshake(key, socket.gethostname()) if key else None
        self._splitter = Splitter(HANDSHAKE_BYTES if self._handshake else config.forward_chunk_bytes)
        self._unread = bytearray()  # what is not split into messages yet
        self._ending = False  # whether the stream ends after ``_unread``
        self._messages: deque[Message | NotForward] = deque()
        self._conversion: Conversion | None = None  # of the message that is being read
        self._unfinished_s = 0.0  # for how long the same message has been unfinished

    def __len__(self) -> int:
        return len(self._messages) + (self._conversion is not None) + bool(self._unread) + self._ending

    @property
    def cannot_be_slow(self) -> bool:
        """Never, because few bytes may be many entries."""
        return False

    @property
    def wants_key(self) -> bool:
        """Whether the client still has to show that it knows the shared key."""
        return self._handshake is not None

    def identify(self, identity: Identity) -> None:
        """Set the identity that the chunks are from."""
        self.publisher = None if identity.publish.every else identity
        self._max_line_bytes = identity.max_line_bytes or self._config.max_line_bytes

    def skip(self, lines: int) -> None:
        """Do nothing, because Forward has no lines."""

    def hello(self) -> bytes | None:
        """The first message to the client, if there is a shared key."""
        return self._handshake.hello() if self._handshake else None

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes. Whatever ends the stream is given out by ``turn``, so no last reply is returned here."""
        if not self._splitter.broken:
            self._unread += data
        return None

    def finish(self) -> None:
        """Take the orderly end of the stream."""
        self._ending = True

    def turn(self) -> Iterator[Conversion | LetIn | NotForward]:
        """Read what waits, up to a turn's worth; give out chunks that are complete."""
        budget, size = TURN_LINES, 0
        try:
            while budget > 0 and size < TURN_BYTES:
                if not self._conversion:
                    if not self._messages:
                        if not (split := self._split()):
                            break
                        size += split
                        continue
                    message = self._messages.popleft()
                    if isinstance(message, NotForward):
                        raise message
                    if self._handshake:
                        budget -= 1
                        yield self._let_in(*self._handshake.answer(message))
                        continue
                    self._conversion = self._begin(message)
                conversion = self._conversion
                events_before, bytes_before = len(conversion.events), conversion.events.size_bytes
                ended = conversion.proceed(min(budget, ENTRIES_AT_ONCE), EVENT_BYTES_AT_ONCE)
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
        self._unread.clear()
        self._ending = False
        self._messages.clear()
        self._conversion = None

    def wait(self, seconds: float) -> bytes | None:
        """Add ``seconds`` to the age of an unfinished message or handshake; end the client if that is too old."""
        if not self._splitter.unfinished and not self._handshake:
            self.forgive()
            return None
        self._unfinished_s += seconds
        if self._unfinished_s <= self._config.line_timeout_s:
            return None
        what = "its handshake" if self._handshake else "a message"
        self.refused(f"it did not finish {what} within {self._config.line_timeout_s:g} s")
        return b""

    def forgive(self) -> None:
        """Restart the age of what is unfinished: the client could not finish it, or need not."""
        self._unfinished_s = 0.0

    def refused(self, why: str) -> None:
        """Count and log that the connection is closed because of what the client sent."""
        self._stats.connections_refused += 1
        self._log.say(logging.WARNING, f"{self._port.name}: %s: closed: %s", self.peer, why)

    def _split(self) -> int:
        """Split the next slice of what is unread; return the length of the slice."""
        piece = bytes(self._unread[:SLICE_BYTES])
        del self._unread[:SLICE_BYTES]
        if piece:
            if messages := self._splitter.feed(piece):
                self._messages += messages
                self._unfinished_s = 0.0
            if self._splitter.broken:
                self._messages.append(self._splitter.broken)
                self._unread.clear()
        elif self._ending:
            self._ending = False
            if self._splitter.unfinished:
                self._log.say(
                    logging.WARNING, f"{self._port.name}: %s ended within a message, which is not stored", self.peer
                )
        return len(piece)

    def _begin(self, message: Message) -> Conversion:
        config = self._config
        chunk = entries.read(message, config.forward_chunk_bytes, self._max_line_bytes)
        return Conversion(chunk, host_of(self.peer), self._fields, config.forward_chunk_bytes * entries.MAX_GROWTH)

    def _let_in(self, pong: bytes, well: bool) -> LetIn:
        if well:
            self._handshake = None
            self._splitter.max_bytes = self._config.forward_chunk_bytes
        return LetIn(pong, well)
