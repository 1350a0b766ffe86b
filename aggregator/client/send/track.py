"""One file: how far it has been read, and up to where every line of it has its final reply.

Rules that hold here:

- A file is read on from its offset only if the bytes before that offset are still the ones that were read there. This
  detects a file that was emptied, even if it has grown past that offset since.
- The offset to go on from after a restart moves only over lines that have their final replies, in whatever order the
  replies come. It never moves over a line that has not ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from aggregator.client.send import content
from aggregator.client.send.compressed import Decoder
from aggregator.client.send.identity import FileId
from aggregator.client.send.in_order import InOrder
from aggregator.client.send.line_ids import LineIds
from aggregator.client.send.lines import Line, Lines
from aggregator.client.send.sparse import next_data

CHUNK_BYTES: Final = 256 << 10
"""How much is read at a time: enough that a system call costs nothing per line, little enough that signals are
noticed."""

TAIL_BYTES: Final = 1024
"""How many bytes before an offset are compared: enough to contain a stamp in nearly every log."""


@dataclass(slots=True, eq=False)
class Piece:
    """What was read at once: the bytes, together with those before them, and the offset where they all start."""

    track: Track
    life: int
    data: bytes
    start: int


class Place(NamedTuple):
    """A line in flight: it tags what is sent, and says what to remember once the line has its final reply."""

    piece: Piece
    number: int
    end: int
    content: bytes | None
    event_id: str
    chain: bytes
    resume: int | None
    """The offset to go on from after this line; None if no reader can begin there."""

    @property
    def name(self) -> str:
        return self.piece.track.name


class Track:
    """How far one file has been read and acked. Without an ``id`` it is a pipe: nothing of it is remembered."""

    def __init__(self, name: str, file: FileId | None, ids: LineIds | None, *, remembers: bool = False) -> None:
        self.name = name
        self.path = os.path.abspath(name)
        self.id = file
        self.offset = 0
        """How far the file has been read."""
        self.resumed_bytes = 0
        """How much of that another process has done, and has not been counted yet."""
        self.is_claimed = False
        """Whether a task reads the file: two tasks would each take a part of its lines."""
        self.is_over = False
        """Whether another file has its name, and this one was read to its end."""
        self.written_at: datetime | None = None
        """When the file was last written, as far as it has been read."""
        self.seen_at = self.named_at = time.time()
        """Until when the file was known to be the one that was read; until when it had its name."""
        self._ids = ids
        self._remembers = remembers  # positions are kept in a file
        self._life = 0
        self._lines = Lines()
        self._decoder: Decoder | None = None
        self._as_text = self._recognised = False
        self._tail = b""  # the bytes before the offset
        self._tail_digest = ""  # of these bytes, if another process has read them; _tail_size is their number
        self._tail_size = 0
        self._reserved_up_to = 0  # the file's size when there were only NULs after the offset
        self._on_the_way: InOrder[Place] = InOrder()
        self._replied_up_to = 0
        self._replied: Place | None = None  # the last place to go on from
        self._record = self._first_record()

    # --- reading

    def read(self, fd: int, *, is_whole: bool) -> bytes | None:
        """The next bytes; empty at the end. None if the file no longer has the bytes that were read before.

        Unless ``is_whole``, the result is also empty while the file has too few bytes to tell what it is.
        """
        size = self._tail_size
        self.written_at = datetime.fromtimestamp(max(0, min(time.time(), os.fstat(fd).st_mtime)), UTC)
        found = os.pread(fd, size + CHUNK_BYTES, self.offset - size)
        if not self.matches(found[:size]):
            return None
        self._tail, self._tail_digest = found[:size], ""
        if not self._recognised:
            head = os.pread(fd, content.HEAD_BYTES, 0)
            if not head or (content.may_become_known(head) and not is_whole):
                return b""
            self.recognise(head)
        data = found[size:]
        if self._decoder or not data.endswith(b"\0"):
            return data
        return self._without_reserved(fd, data)

    def matches(self, before: bytes) -> bool:
        """Whether these are the bytes before the offset."""
        return _digest(before) == self._tail_digest if self._tail_digest else before == self._tail

    def matches_copy(self, fd: int) -> bool:
        """Whether an open file has the same bytes before the same offset, and so may be a copy that goes further."""
        return self.offset > 0 and self.matches(os.pread(fd, self._tail_size, self.offset - self._tail_size))

    def recognise(self, head: bytes) -> None:
        """Find out whether this is text, or compressed text. Raises Refused."""
        kind = content.compression(head)
        self._decoder = Decoder(kind) if kind else None
        self._recognised = True

    def take_as_text(self) -> None:
        """Take the file as text, whatever it looks like."""
        self._as_text = self._recognised = True

    def _without_reserved(self, fd: int, data: bytes) -> bytes:
        """The data without NULs at its end: they are space that the writer has reserved, and are not read yet.

        If other bytes follow the NULs, the NULs were left when the file was emptied, and are skipped.
        """
        text = data.rstrip(b"\0")
        size = os.fstat(fd).st_size
        if text or len(data) < CHUNK_BYTES or size == self._reserved_up_to:
            return text
        start = next_data(fd, self.offset)
        if start is None:
            self._reserved_up_to = size
            return b""
        self._lines.skip(start - self.offset)
        self.offset = start
        self._remember(b"")
        return self._without_reserved(fd, os.pread(fd, CHUNK_BYTES, start))

    # --- lines

    def take(self, data: bytes) -> Iterator[list[Place]]:
        """The lines that the next bytes complete. Raises Damaged, Refused."""
        piece = self._piece(data)
        self.offset += len(data)
        self._remember((self._tail + data)[-TAIL_BYTES:])
        if self._decoder is None:
            yield [self._place(piece, line, line.end) for line in self._lines.feed(data)]
            return
        for text in self._decoder.feed(data):
            if self._lines.is_fresh:
                content.check_text(text[: content.HEAD_BYTES])
            yield [self._place(piece, line, None) for line in self._lines.feed(text)]

    def finish(self) -> Iterator[list[Place]]:
        """The rest, at the end of the file or of its content before it was emptied. Raises Damaged."""
        piece = self._piece(b"")
        yield [self._place(piece, line, None) for line in self._lines.finish()]
        if self._decoder:
            self._decoder.finish()
            # A reader can go on only from here, not from the middle of compressed data.
            chain = self._ids.chain if self._ids else b""
            yield [Place(piece, self._lines.number, self._lines.end, b"", "", chain, self.offset)]

    def begin_again(self) -> None:
        """Begin again, because the file was emptied."""
        self._life += 1
        self._lines = Lines()
        self._recognised = self._as_text
        self._decoder = None
        self.offset = self._replied_up_to = self._reserved_up_to = 0
        self._remember(b"")
        self._on_the_way = InOrder()
        self._replied = None
        if self._ids:
            self._ids.begin_again()
        self._record = self._first_record()

    def _remember(self, tail: bytes) -> None:
        self._tail, self._tail_size, self._tail_digest = tail, len(tail), ""

    def _piece(self, data: bytes) -> Piece:
        if not self._remembers:
            return Piece(self, self._life, b"", 0)
        return Piece(self, self._life, self._tail + data, self.offset - len(self._tail))

    def _place(self, piece: Piece, line: Line, resume: int | None) -> Place:
        if self._ids is None:
            return Place(piece, line.number, line.end, line.content, "", b"", resume)
        event_id = self._ids.next(line.content or b"")
        return Place(piece, line.number, line.end, line.content, event_id, self._ids.chain, resume)

    # --- final replies

    def begin(self, place: Place) -> None:
        """Record that a line is in flight; lines begin in order."""
        self._on_the_way.begin(place)

    def end(self, place: Place) -> int:
        """Record that a line has its final reply; return how many more bytes have theirs now, without a gap."""
        if place.piece.life != self._life:
            return 0
        before = self._replied_up_to
        for passed in self._on_the_way.end(place):
            self._replied_up_to = passed.end
            if passed.resume is not None:
                self._replied = passed
        return self._replied_up_to - before

    async def drained(self) -> None:
        """Wait until no line is in flight."""
        await self._on_the_way.empty()

    # --- what another process needs to go on

    def to_json(self) -> dict[str, Any]:
        """The place after the last line such that it and all lines before it have their final replies."""
        if place := self._replied:
            piece = place.piece
            assert place.resume is not None
            until = place.resume - piece.start
            before = piece.data[max(0, until - TAIL_BYTES) : until]
            self._record = {
                "offset": place.resume,
                "line": place.number,
                "before": [len(before), _digest(before)],
                "ids": self._ids.to_json(place.chain, place.number) if self._ids else None,
            }
            self._replied = None
        assert self.id
        is_over = self.is_over and not self._on_the_way
        return {"path": self.path, **self.id._asdict(), **self._times(), "over": is_over, **self._record}

    def resume(self, fields: Mapping[str, Any]) -> None:
        """Go on where another process has stopped."""
        self.seen_at, self.named_at = float(fields["seen_at"]), float(fields["named_at"])
        self.path = fields["path"]
        self.is_over = fields["over"]
        self.offset = self._replied_up_to = self.resumed_bytes = int(fields["offset"])
        self._tail_size, self._tail_digest = fields["before"]
        self._lines = Lines(self.offset, fields["line"])
        if self._ids:
            self._ids.resume(fields["ids"])
        self._record = {name: fields[name] for name in self._record}

    def skip_to_end(self, fd: int) -> None:
        """Treat an open file as one that has been read to its end."""
        self.is_over = True
        self.offset = os.fstat(fd).st_size
        self._remember(os.pread(fd, TAIL_BYTES, max(0, self.offset - TAIL_BYTES)))
        self._lines = Lines(self.offset)
        self._record |= {"offset": self.offset, "before": [self._tail_size, _digest(self._tail)]}

    def _times(self) -> dict[str, float]:
        return {"seen_at": self.seen_at, "named_at": self.named_at}

    def _first_record(self) -> dict[str, Any]:
        ids = self._ids.to_json(self._ids.chain, 0) if self._ids else None
        return {"offset": 0, "line": 0, "before": [0, _digest(b"")], "ids": ids}


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
