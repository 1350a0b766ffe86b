"""Messages to entries: the times and records of one message, whichever mode it has, decoded piece by piece.

Memory is bounded before anything is decoded: the splitter bounds a message, ``max_record_bytes`` bounds a record, and
MAX_GROWTH bounds what compressed entries unpack to.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from aggregator.wire.forward import NotForward, values
from aggregator.wire.forward.framing import Message

MAX_GROWTH: Final = 4
"""A message's entries may unpack to this many times the size of the longest message, and its events may take as much. A
chunk of 8 MB, the longest that Fluentd keeps in memory, stays below that with records of 30 bytes. A decompression bomb
unpacks to a thousand times its size."""

PIECE_BYTES: Final = 1 << 16
"""How much is decoded, or unpacked, at a time."""

_GZIP: Final = 31  # zlib's code for a gzip member with a window of any size

_SIGNALS: Final = {1: "metrics", 2: "traces"}
"""What Fluent Bit forwards besides logs, in a format of its own (``fluent_signal``, v1.5)."""

_ARRAY_OF_TWO: Final = b"\x92"

Entry = tuple[Any, Any] | None
"""A time and a record, as ``values`` decodes them. None stands for a piece that completes no entry, because decoding it
took time too."""


@dataclass(slots=True)
class Chunk:
    """One message that carries events."""

    tag: str
    """Bytes that are not UTF-8 are decoded with "surrogateescape"."""
    entries: Iterator[Entry]
    """The iterator raises NotForward where the rest cannot be read."""
    name: str | bytes | None
    """The name of the chunk, which the ack repeats; None if the client wants no ack."""


def read(message: Message, max_bytes: int, max_record_bytes: int) -> Chunk:
    """Read a message up to its entries. ``max_bytes`` is the longest message. Raises NotForward."""
    second = message.part(1)
    is_single = _is_single(second, len(message))
    if len(message) not in ((3, 4) if is_single else (2, 3)):
        raise NotForward(f"an array of {len(message)} is not a Forward message")
    try:
        tag = values.unpack(message.part(0))
        option = values.unpack(message.part(-1)) if len(message) == (4 if is_single else 3) else None
    except ValueError as error:
        raise _bad(error) from None
    if type(tag) is bytes:
        tag = tag.decode(errors="surrogateescape")
    if type(tag) is not str:
        raise NotForward(f"the tag is not text but {values.kind(tag)}")
    options = option if type(option) is dict else {}
    if signal := options.get("fluent_signal"):
        what = _SIGNALS.get(signal, str(signal)) if type(signal) is int else values.kind(signal)
        raise NotForward(f"it forwards {what}, not logs: match only logs")
    pieces: Iterable[bytes | memoryview]
    if is_single:
        # An entry is an array of time and record: put the header of an array before these two parts.
        pieces = [_ARRAY_OF_TWO, *_pieces(message.parts(1, 3))]
    elif _is_array(second[0]):
        pieces = _pieces(_members(second))
    else:
        pieces = _packed(_bytes(second), options.get("compressed"), max_bytes)
    name = options.get("chunk")
    return Chunk(tag, _each(pieces, max_record_bytes), name if type(name) in (str, bytes) else None)


def _is_single(second: memoryview, parts: int) -> bool:
    """Whether the message is of mode Message: its second part is a time."""
    if not _is_array(second[0]):
        return not _is_bytes(second[0])
    members = _members(second)
    return parts > 2 and len(members) > 0 and not _is_array(members[0])  # a time with metadata, v1.5


def _packed(packed: memoryview, compression: Any, max_bytes: int) -> Iterator[bytes | memoryview]:
    if compression in (None, "", "text"):
        return _pieces(packed)
    if compression == "gzip":
        return _gunzip(packed, max_bytes * MAX_GROWTH)
    how = compression[:40] if type(compression) is str else values.kind(compression)
    raise NotForward(f"compressed as {how!r}: only gzip is understood")


def _each(pieces: Iterable[bytes | memoryview], max_record_bytes: int) -> Iterator[Entry]:
    decoder = values.unpacker(max_record_bytes + 2 * PIECE_BYTES)
    fed = ended = 0
    try:
        for piece in pieces:
            fed += len(piece)
            decoder.feed(piece)
            ended_before = ended
            for entry in decoder:
                end = decoder.tell()
                if end - ended > max_record_bytes:
                    raise _too_long(max_record_bytes)
                ended = end
                if type(entry) is not list or len(entry) < 2:
                    raise NotForward(f"an entry is not an array of a time and a record but {values.kind(entry)}")
                yield entry[0], entry[1]
            if fed - ended > max_record_bytes + PIECE_BYTES:
                raise _too_long(max_record_bytes)
            if ended == ended_before:
                yield None
    except msgpack.BufferFull:
        raise _too_long(max_record_bytes) from None
    except ValueError as error:
        raise _bad(error) from None
    if ended != fed:
        raise NotForward("its last entry is cut short")


def _pieces(data: memoryview) -> Iterator[memoryview]:
    return (data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES))


def _gunzip(data: memoryview, max_bytes: int) -> Iterator[bytes]:
    """Unpack gzip members, one after the other, in pieces."""
    unpacked = 0
    member = zlib.decompressobj(_GZIP)
    try:
        for compressed in _pieces(data):
            rest = bytes(compressed)
            while rest:
                if member.eof:
                    member = zlib.decompressobj(_GZIP)
                piece = member.decompress(rest, PIECE_BYTES)
                unpacked += len(piece)
                if unpacked > max_bytes:
                    raise NotForward(f"its entries unpack to more than {max_bytes} bytes")
                yield piece
                rest = member.unused_data if member.eof else member.unconsumed_tail
        while not member.eof and (piece := member.decompress(b"", PIECE_BYTES)):
            unpacked += len(piece)
            if unpacked > max_bytes:
                raise NotForward(f"its entries unpack to more than {max_bytes} bytes")
            yield piece
    except zlib.error as error:
        raise NotForward(f"not gzip: {error}") from None
    if not member.eof:
        raise NotForward("its gzip is cut short")


def _bad(error: ValueError) -> NotForward:
    return NotForward(f"not MessagePack: {str(error) or type(error).__name__}")


def _too_long(max_record_bytes: int) -> NotForward:
    return NotForward(f"a record is longer than {max_record_bytes} bytes (--max-line-bytes)")


# --- the first bytes of a value (MessagePack specification, "Formats")


def _is_array(first: int) -> bool:
    return 0x90 <= first <= 0x9F or first in (0xDC, 0xDD)


def _is_bytes(first: int) -> bool:
    return 0xA0 <= first <= 0xBF or 0xC4 <= first <= 0xC6 or 0xD9 <= first <= 0xDB


def _members(array: memoryview) -> memoryview:
    """The members of an array, without its header."""
    return array[1 + {0xDC: 2, 0xDD: 4}.get(array[0], 0) :]


def _bytes(value: memoryview) -> memoryview:
    """The content of a ``bin`` or a ``str``, without its header."""
    return value[1 + {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}.get(value[0], 0) :]
