"""Lines to what they mean: events, batches, commands, rejections. Lines are interpreted a turn's worth at a time.

A turn is bounded, so that one client's lines never hold up other clients. Lines beyond the turn wait uninterpreted.
"""

from __future__ import annotations

import re
import shlex
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from aggregator.event import Event, Events
from aggregator.wire import Rejection, Word, replies, rules

TURN_LINES: Final = 500
"""Maximum lines of one connection that are interpreted in one turn of the loop, about 1 ms. Only between turns does the
loop notice the end of a commit and start the next one. 250 lines were no better; all lines of one read were some 10 %
slower."""

TURN_BYTES: Final = 256 * 1024
"""The same limit in bytes: about the size of one read. A longer line is a turn by itself."""

PIECE_LINES: Final = 100
"""How many lines are judged together. That takes three quarters of the time of judging them one by one; in smaller
pieces the fixed cost shows. If any line of a piece is not a plain event, its lines are judged one by one after all."""

FEWEST_PIECE_LINES: Final = 6
"""The smallest piece: up to five lines take less time one by one."""

MAX_COMMAND_BYTES: Final = 4096
"""Room for a topic and an event_id of 255 four-byte characters each, quoted. shlex reads character by character in
Python: without this bound a command of a mebibyte would stall every client for a second."""

_OPEN_BRACE, _OPEN_BRACKET = b"{["
_BLANKS = b" \t\r"  # JSON's white space except the line feed
_FIRST_WORD = re.compile(rb"[A-Za-z]{2,20}(?![^ \t\r])")


@dataclass(slots=True)
class Command:
    """A command: its word, and its arguments as a shell would split them."""

    word: Word
    arguments: list[str]

    @property
    def typed(self) -> str:
        """The command as it could have been typed."""
        return shlex.join([self.word, *self.arguments])


Batch = list[Event | Rejection]
"""A batch line: its members in order, each judged by itself."""

Meaning = Events | Batch | Command | Rejection
"""What one line means. Events of consecutive lines are returned together."""


class Publisher(Protocol):
    """The client that sent the lines."""

    @property
    def name(self) -> str: ...

    def may_publish(self, topics: Iterable[str]) -> bool:
        """Whether it may publish to all of these topics."""


class Interpreter:
    """Interprets the lines of one client, in order. It holds the lines that wait, and the number of the last line."""

    def __init__(self, max_line_bytes: int, publisher: Publisher | None) -> None:
        self.line_number = 0
        """The 1-based number, on its connection, of the line whose meaning was returned last."""
        self.line: bytes | None = None
        """That line, unless it is a plain event; None if it is over-long."""
        self.publisher = publisher
        """The client that sent the lines; None if it may publish to every topic."""
        self.max_line_bytes = max_line_bytes
        self.lines: deque[bytes | None] = deque()
        """The lines that wait."""
        self.waiting_bytes = 0
        """Their total length."""

    def add(self, lines: Sequence[bytes | None]) -> None:
        """Take lines as ``LineSplitter`` returns them."""
        self.lines += lines
        self.waiting_bytes += sum(map(len, filter(None, lines)))

    def clear(self) -> None:
        """Drop the lines that wait."""
        self.lines.clear()
        self.waiting_bytes = 0

    def turn(self) -> Iterator[Meaning]:
        """Interpret the next lines, up to a turn's worth."""
        budget = TURN_LINES
        left_bytes = self.waiting_bytes - TURN_BYTES
        events = Events()  # consecutive events are returned together
        singly = 0  # how many lines are still to be judged one by one, because one of them is not a plain event
        while self.lines and budget > 0 and self.waiting_bytes > left_bytes:
            if not singly:
                plain = self._take_plain(budget)
                if plain:
                    events += plain
                    budget -= len(plain)
                else:
                    singly = PIECE_LINES
                continue
            singly -= 1
            line = self.line = self.lines.popleft()
            self.line_number += 1
            budget -= 1
            self.waiting_bytes -= len(line or b"")
            if line == b"":
                continue
            found = replies.too_long(self.max_line_bytes) if line is None else interpret(line)
            if found is None:
                continue
            if self.publisher:
                found = _permitted(found, self.publisher)
            if isinstance(found, Event):
                events.append(found)
                continue
            if events:
                yield events
                events = Events()
            if isinstance(found, Command):
                budget = 0  # splitting a command into words takes as long as judging a thousand events
            elif isinstance(found, list):
                budget -= len(found)
            yield found
        if events:
            yield events

    def _take_plain(self, most: int) -> Events | None:
        """Take the next lines, if there are several and all are plain events; otherwise take nothing."""
        if len(self.lines) < FEWEST_PIECE_LINES:
            return None
        piece = list(islice(self.lines, min(PIECE_LINES, most)))
        if self.waiting_bytes > TURN_BYTES and sum(map(len, filter(None, piece))) > TURN_BYTES:
            return None
        plain = rules.parse_plain(piece)
        if plain and self.publisher and not self.publisher.may_publish(plain.topics):
            return None
        if plain:
            for _ in piece:
                self.lines.popleft()
            self.line_number += len(piece)
            self.waiting_bytes -= plain.size_bytes
        return plain


def interpret(line: bytes) -> Event | Batch | Command | Rejection | None:
    """What a line is: an event, a batch (its members judged one by one), a command or a rejection; None if blank."""
    line = line.lstrip(_BLANKS)
    if not line:
        return None
    if line[0] in (_OPEN_BRACE, _OPEN_BRACKET):
        return rules.parse(line)
    first = _FIRST_WORD.match(line)
    if not first:
        return replies.no_event(line)
    typed = first[0]
    try:
        word = Word(typed.upper().decode())
    except ValueError:
        meant = typed.isupper() and typed == line.rstrip(_BLANKS)  # other lines may be text, which begins with a word
        return replies.unknown_command(typed.decode()) if meant else replies.no_event(line)
    return _command(word, line)


def _permitted(found: Event | Batch | Command | Rejection, publisher: Publisher) -> Event | Batch | Command | Rejection:
    """``found``, with a rejection in place of each event that the client may not publish."""
    if isinstance(found, Event):
        return found if publisher.may_publish((found.topic,)) else replies.may_not_publish(publisher.name, found)
    if not isinstance(found, list):
        return found
    return [
        member
        if isinstance(member, Rejection) or publisher.may_publish((member.topic,))
        else replies.may_not_publish(publisher.name, member)
        for member in found
    ]


def _command(word: Word, line: bytes) -> Command | Rejection:
    if len(line) > MAX_COMMAND_BYTES:
        return replies.long_command(MAX_COMMAND_BYTES, len(line))
    try:
        typed, *arguments = shlex.split(line.decode())
    except UnicodeDecodeError as error:
        return replies.bad_utf8_in_command(error.start + 1)
    except ValueError as error:  # shlex: an open quote, a lone backslash
        return replies.bad_quoting(str(error))
    if word is Word.QUIT and (typed != word or arguments):
        return replies.bad_quit()
    return Command(word, arguments)
