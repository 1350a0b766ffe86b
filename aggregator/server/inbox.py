"""The input of one client: bytes to lines, lines to what they mean.

The inbox counts and logs what is wrong with the lines, and answers nothing. If it finds a reason to end the stream, it
returns the last reply.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from aggregator.access.identity import NOBODY, Identity
from aggregator.server.excerpt import Excerpt
from aggregator.server.port import Port
from aggregator.server.state import State
from aggregator.wire import Code, Failure, Rejection, replies
from aggregator.wire.lines import Framing, LineSplitter
from aggregator.wire.meaning import PIECE_LINES, Interpreter, Meaning

log = logging.getLogger("aggregator")

NO_LF_S: Final = 5.0
"""A first line that has not ended by then is worth a warning, because its client may never end a line."""

LITTLE_BYTES: Final = 1024
"""A turn with less input than this is not measured. The worst that fits into it, a batch of 500 numbers, takes as long
as a slow turn."""


class Inbox:
    """The lines of one client of ``port`` that wait to be interpreted; its length is their number."""

    def __init__(self, state: State, port: Port) -> None:
        self.peer = "a client"
        """The client's name in the log."""
        self._stats = state.stats
        self._log = state.peer_log
        self._port = port
        self._line_timeout_s = state.config.line_timeout_s
        self._max_line_bytes = state.config.max_line_bytes
        self._splitter = LineSplitter(state.config.max_line_bytes)
        self._interpreter = Interpreter(state.config.max_line_bytes, NOBODY)
        self._unfinished_s = 0.0  # for how long the same line has been unfinished
        self._warned = False
        self._cut = b""  # the start of a last line that may be cut

    def __len__(self) -> int:
        return len(self._interpreter.lines) + bool(self._cut)

    @property
    def cannot_be_slow(self) -> bool:
        """Whether so little waits that the next turn need not be measured."""
        interpreter = self._interpreter
        return interpreter.waiting_bytes < LITTLE_BYTES and len(interpreter.lines) < PIECE_LINES

    @property
    def line_number(self) -> int:
        """The 1-based number of the line whose meaning was given out last."""
        return self._interpreter.line_number

    def identify(self, identity: Identity) -> None:
        """Set the identity that the lines are from."""
        self._interpreter.publisher = None if identity.publish.every else identity
        longest = identity.max_line_bytes or self._max_line_bytes
        self._splitter.max_line_bytes = self._interpreter.max_line_bytes = longest

    def skip(self, lines: int) -> None:
        """Count lines of the connection that were read elsewhere."""
        self._interpreter.line_number += lines

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes. If they turn out to be of another protocol, return the last reply to the client."""
        splitter = self._splitter
        lines = splitter.feed(data)
        if lines:
            self._interpreter.add(lines)
            self._unfinished_s = 0.0
        if splitter.skipped_bytes:
            self._note_skipped()
        if not splitter.foreign:
            return None
        self._stats.connections_refused += 1
        self._log.say(logging.INFO, "%s speaks %s: closed", self.peer, splitter.foreign.value)
        return replies.to_foreign(splitter.foreign, self.line_number + 1)

    def finish(self) -> None:
        """Take the orderly end of the stream: the unterminated rest, if there is one, is a line too."""
        self._interpreter.add(self._splitter.finish())

    def cut(self) -> None:
        """Take the end of a stream whose last line may be cut: drop that line if it is unfinished."""
        self._cut = self._splitter.drop_unfinished()

    def turn(self) -> Iterator[Meaning | Failure]:
        """Interpret the next lines, up to a turn's worth."""
        return self._turn_to_the_cut() if self._cut else self._interpreter.turn()

    def _turn_to_the_cut(self) -> Iterator[Meaning | Failure]:
        yield from self._interpreter.turn()
        if not self._interpreter.lines and self._cut:
            self._stats.received += 1
            self._stats.errors += 1
            start, self._cut = self._cut, b""
            failure = replies.cut_line(self.line_number + 1)
            self._log.say(
                logging.WARNING, f"{self._port.name}: %s: dropped: %s: %s", self.peer, failure.detail, Excerpt(start)
            )
            yield failure

    def clear(self) -> None:
        """Drop the lines that wait."""
        self._interpreter.clear()
        self._cut = b""

    def wait(self, seconds: float) -> bytes | None:
        """Add ``seconds`` to the age of the unfinished line. If it is too old, return the last reply to the client.

        The age is counted in these calls, not by the clock, because no client is to blame if the server stood still.
        """
        if not self._splitter.unfinished:
            self.forgive()
            return None
        self._unfinished_s += seconds
        if self._unfinished_s >= NO_LF_S and not self._warned and self.line_number == 0 and not self._splitter.skipping:
            self._warn()
        if self._unfinished_s <= self._line_timeout_s:  # "<=": the first call came sooner after the line's first byte
            return None
        line_number = self.line_number + (0 if self._splitter.skipping else 1)
        framing = self._splitter.look_at_framing()
        self._stats.received += 1
        self._stats.errors += 1
        self._log.say(
            logging.WARNING, f"{self._port.name}: %s did not finish line %d within %g s: closed; %s",
            self.peer, line_number, self._line_timeout_s, framing.value,
        )  # fmt: skip
        return replies.encode(replies.error(replies.unfinished_line(line_number, self._line_timeout_s, framing)))

    def forgive(self) -> None:
        """Restart the age of the unfinished line: the client could not end it, or need not."""
        self._unfinished_s = 0.0

    def count_rejection(self, rejection: Rejection, line_number: int, typed: str | None = None) -> None:
        """Count and log that an event, a line or a command was rejected; ``typed`` is a command of an earlier turn."""
        log.debug("%s: refused line %d: %s: %s", self.peer, line_number, rejection.code, rejection.detail)
        self._stats.reject(rejection.code)
        if rejection.code is Code.TOO_LONG:
            start = self._splitter.starts.popleft()
        else:
            start = typed.encode() if typed else self._interpreter.line or b""
        self._log.rejected(self._port, self.peer, line_number, rejection, Excerpt(start))

    def _warn(self) -> None:
        """Say once that the client's bytes hold no line feed."""
        self._warned = True
        framing = self._splitter.look_at_framing()
        hint = "" if framing is Framing.NONE else f": {framing.value}, which the wrap port takes"
        self._log.say(
            logging.WARNING, f"{self._port.name}: %s has sent no line feed for %g s{hint}: %s",
            self.peer, NO_LF_S, Excerpt(self._splitter.start),
        )  # fmt: skip

    def _note_skipped(self) -> None:
        """Count what is skipped of an over-long line, and say how the stream seems to be framed."""
        splitter = self._splitter
        self._stats.skipped_bytes += splitter.skipped_bytes
        splitter.skipped_bytes = 0
        if splitter.framing is not Framing.NONE:
            self._log.say(
                logging.WARNING, f"{self._port.name}: %s: a line is too long: %s", self.peer, splitter.framing.value
            )
