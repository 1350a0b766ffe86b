"""The input of one client of the wrap port: bytes to texts, texts to events.

Only events that the client may not publish are rejected here. A stream that holds no text, such as TLS, is named in the
log and ended.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from aggregator.access.identity import NOBODY, Identity
from aggregator.address import host_of
from aggregator.event import Events
from aggregator.server.excerpt import Excerpt
from aggregator.server.port import Port
from aggregator.server.state import State
from aggregator.wire import replies
from aggregator.wire.meaning import TURN_BYTES
from aggregator.wrap.framing import Framer, Part, Text
from aggregator.wrap.recognition import Framing
from aggregator.wrap.topic import TopicTemplate
from aggregator.wrap.wrapper import Defaults, Wrapper

log = logging.getLogger("aggregator")

PIECE_TEXTS: Final = 100
"""Texts that are wrapped together, because some of the cost is fixed. The loop's other work is done between turns."""

TURN_TEXTS: Final = 300
"""Texts of one connection wrapped in one turn of the loop, about 1 ms: each costs more than an event."""

SLICE_BYTES: Final = 16 * 1024
"""How much input is cut into texts at a time. A text may have two bytes, and each text costs some 2 µs."""

SLICES_AT_ONCE: Final = 4
"""How many slices are searched in one turn if no text ends in them. The worst JSON takes 20 ms a slice."""

MAX_TEXT_BYTES: Final = 32 << 20
"""Longest text, even if longer lines are allowed: each control character takes six bytes in JSON, and SQLite takes at
most 10^9 bytes."""

WARN_S: Final = 5.0
"""A text that has not ended by then is worth a warning, because its client may end texts in a way not known here."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The number of events that were not given out, because their client may not publish them."""

    events: int


class WrapInbox:
    """The texts of one client that wait to be wrapped; its length is their number."""

    def __init__(self, state: State, port: Port) -> None:
        self.peer = "a client"
        """The client's name in the log."""
        self._stats = state.stats
        self._log = state.peer_log
        self._port = port
        self._config = state.config
        self._publisher: Identity | None = NOBODY  # None: an identity that may publish to every topic
        self._framer = Framer(min(state.config.max_line_bytes, MAX_TEXT_BYTES))
        self._framing: Framing | None = None  # the last one that was logged
        self._over = False
        self._wrapper: Wrapper | None = None
        self._unread = bytearray()  # what is not cut into texts yet
        self._ending = False  # whether the stream ends after ``_unread``
        self._texts: deque[Text] = deque()
        self._given_out = 0  # texts
        self._unfinished_s = 0.0
        self._warned = False

    def __len__(self) -> int:
        return len(self._texts) + bool(self._unread) + self._ending

    @property
    def cannot_be_slow(self) -> bool:
        """Never, because few bytes may be many texts."""
        return False

    def identify(self, identity: Identity) -> None:
        """Set the identity that the texts are from. Once the first text has begun, the longest length is fixed."""
        self._publisher = None if identity.publish.every else identity
        if self._framer.framing is None and not self._framer.unfinished:
            longest = identity.max_line_bytes or self._config.max_line_bytes
            self._framer = Framer(min(longest, MAX_TEXT_BYTES))

    def skip(self, lines: int) -> None:
        """Do nothing: lines that were read elsewhere are not texts."""

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes. If they turn out not to be text, return an empty last reply, which ends the stream."""
        self._unread += data
        self._cut(slices=1)
        return b"" if self._over else None

    def finish(self) -> None:
        """Take the end of the stream: the unfinished rest is a text too."""
        self._ending = True

    def turn(self) -> Iterator[Events | Refused]:
        """Wrap the next texts, up to a turn's worth."""
        if self._wrapper is None:  # now the peer's name is known
            config = self._config
            self._wrapper = Wrapper(
                Defaults(TopicTemplate(config.wrap_topic), host_of(self.peer), config.wrap_id_field)
            )
        budget, size = TURN_TEXTS, 0
        while budget > 0 and size < TURN_BYTES and self._cut():
            piece: list[Text] = []
            while self._texts and len(piece) < PIECE_TEXTS and size < TURN_BYTES:
                may_be_many = _may_be_array(self._texts[0])
                if may_be_many and piece:
                    break
                text = self._texts.popleft()
                size += len(text.content if isinstance(text, Part) else text)
                piece.append(text)
                if may_be_many:
                    break
            budget -= len(piece)
            self._given_out += len(piece)
            if events := self._wrapper.wrap(piece):
                budget -= len(events) - len(piece)  # an array has several
                if self._publisher and not self._publisher.may_publish(events.topics):
                    permitted = self._permitted(events, self._publisher)
                    yield Refused(len(events) - len(permitted))
                    events = permitted
                if events:
                    yield events

    def clear(self) -> None:
        """Drop the texts that wait."""
        self._unread.clear()
        self._ending = False
        self._texts.clear()

    def wait(self, seconds: float) -> bytes | None:
        """Add ``seconds`` to the age of the unfinished text.

        A text that is unfinished for too long is stored as it is: as a part of a text that may go on.
        """
        framer = self._framer
        if texts := framer.settle():
            self._texts += texts
            self._name_framing()
        if self._over:
            return b""
        if not framer.unfinished or self._unread:
            self.forgive()
            return None
        self._unfinished_s += seconds
        if self._unfinished_s > WARN_S and not self._warned and not self._given_out:
            self._warned = True
            self._log.say(
                logging.WARNING, f"{self._port.name}: %s: no text has ended for %g s: %s",
                self.peer, WARN_S, Excerpt(framer.start),
            )  # fmt: skip
        if self._unfinished_s > self._config.line_timeout_s:
            self._unfinished_s = 0.0
            self._texts += framer.flush()
            self._name_framing()
        return b"" if self._over else None

    def forgive(self) -> None:
        """Restart the age of the unfinished text."""
        self._unfinished_s = 0.0

    def _permitted(self, events: Events, publisher: Identity) -> Events:
        """The events that the client may publish. The others are counted and logged; only the log tells of them."""
        permitted = Events()
        for event in events:
            if publisher.may_publish((event.topic,)):
                permitted.append(event)
                continue
            rejection = replies.may_not_publish(publisher.name, event)
            self._stats.received += 1
            self._stats.reject(rejection.code)
            self._log.rejected(self._port, self.peer, self._given_out, rejection, Excerpt(event.json))
        return permitted

    def _cut(self, slices: int = SLICES_AT_ONCE) -> bool:
        """Cut unread input until there are texts, up to ``slices`` slices; return whether there are any."""
        while not self._texts and self._unread and slices:
            slices -= 1
            self._texts += self._framer.feed(bytes(self._unread[:SLICE_BYTES]))
            del self._unread[:SLICE_BYTES]
        if not self._texts and self._ending and not self._unread:
            self._ending = False
            self._texts += self._framer.finish()
        self._name_framing()
        if self._texts:
            self._unfinished_s = 0.0
        return bool(self._texts)

    def _name_framing(self) -> None:
        """Log how the stream is framed, once for each kind. If it turns out not to be text, log that and end it."""
        framer = self._framer
        if framer.foreign and not self._over:
            self._over = True
            self._unread.clear()
            self._stats.connections_refused += 1
            self._log.say(
                logging.WARNING, f"{self._port.name}: %s: closed, because it sends {framer.foreign.value}: %s",
                self.peer, Excerpt(framer.start),
            )  # fmt: skip
        if framer.framing and framer.framing is not self._framing:
            lost = f", because the stream no longer keeps to {self._framing.value}" if self._framing else ""
            self._framing = framer.framing
            self._log.say(
                logging.INFO, f"{self._port.name}: %s: framing: {framer.framing.value}{lost}", self.peer
            )  # fmt: skip


def _may_be_array(text: Text) -> bool:
    """Whether one text may become many events."""
    return type(text) is bytes and text.lstrip()[:1] == b"["
