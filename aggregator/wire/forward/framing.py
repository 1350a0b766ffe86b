"""Bytes to messages: where each MessagePack value of a stream ends, and how long it may be. Nothing is decoded here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgpack

from aggregator.wire.forward import NotForward

_NIL: Final = 0xC0
_NILS: Final = bytes([_NIL])
_MOST_PARTS: Final = 6  # as a PING has; a message with events has two to four
_SHOWN_BYTES: Final = 16

_ARRAYS: Final = {*range(0x90, 0xA0), 0xDC, 0xDD}

_FOREIGN: Final = (
    (b"{", "that is JSON: switch to the Forward protocol, or send it to another port"),
    (b"[", "that is JSON: switch to the Forward protocol, or send it to another port"),
    (b"<", "that is syslog: send it to another port"),
    (b"\x16\x03", "that is TLS: switch it off"),
    (b"\x1f\x8b", "that is gzip: compress chunks, not the connection"),
    (b"PROXY ", "that is a PROXY header: switch it off"),
    (b"GET ", "that is HTTP"),
    (b"POST ", "that is HTTP"),
    (b"PUT ", "that is HTTP"),
)


@dataclass(slots=True)
class Message:
    """One message: its bytes, and the offset at which each of its parts begins; the last offset is the end."""

    data: bytes
    offsets: list[int]

    def __len__(self) -> int:
        """The number of its parts."""
        return len(self.offsets) - 1

    def part(self, index: int) -> memoryview:
        """The MessagePack of one part; a negative index counts from the end."""
        index %= len(self)
        return self.parts(index, index + 1)

    def parts(self, start: int, end: int) -> memoryview:
        """The MessagePack of the parts from ``start`` to before ``end``, one after the other."""
        return memoryview(self.data)[self.offsets[start] : self.offsets[end]]


class Splitter:
    """Splits a stream into messages, which are the same however the stream is split into reads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        """Longest message."""
        self.broken: NotForward | None = None
        """Why the rest of the stream cannot be read."""
        self._scanner = _scanner()
        self._buffer = bytearray()  # the bytes from the start of the incomplete message
        self._consumed = 0  # how many bytes the scanner was given before those of the buffer
        self._offsets: list[int] = []  # of the incomplete message's parts, as far as they are known
        self._parts = 0

    @property
    def unfinished(self) -> bool:
        """Whether a message has begun and has not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Message]:
        """Take the next bytes; return the messages that they complete. This may set ``broken``."""
        messages: list[Message] = []
        if self.broken:
            return messages
        self._buffer += data
        try:
            self._scanner.feed(data)
            while self._buffer:
                if message := self._next():
                    messages.append(message)
        except msgpack.OutOfData:
            if len(self._buffer) > self.max_bytes:
                self._give_up(self._too_long())
        except NotForward as error:
            self._give_up(error)
        except ValueError as error:  # bytes that the scanner does not understand, or that are nested too deeply for it
            self._give_up(NotForward(f"not MessagePack ({type(error).__name__}): {_shown(self._buffer)}"))
        return messages

    def _next(self) -> Message | None:
        """The next message; None after a heartbeat. Raises OutOfData if it is not complete yet."""
        if not self._offsets:
            if self._buffer[0] == _NIL:
                self._skip_heartbeats()
                return None
            if self._buffer[0] not in _ARRAYS:
                raise NotForward(_describe(self._buffer))
            self._parts = self._scanner.read_array_header()
            if not 2 <= self._parts <= _MOST_PARTS:
                raise NotForward(f"an array of {self._parts} is not a Forward message")
            self._offsets.append(self._position)
        while len(self._offsets) <= self._parts:
            self._scanner.skip()
            self._offsets.append(self._position)
        end = self._position
        if end > self.max_bytes:
            raise self._too_long()
        message = Message(bytes(memoryview(self._buffer)[:end]), self._offsets)
        self._forget(self._scanner.tell())
        return message

    def _skip_heartbeats(self) -> None:
        """Skip all heartbeats in front, in one step however many there are."""
        del self._buffer[: len(self._buffer) - len(self._buffer.lstrip(_NILS))]
        self._consumed = 0
        self._scanner = _scanner()
        self._scanner.feed(self._buffer)

    @property
    def _position(self) -> int:
        position: int = self._scanner.tell() - self._consumed
        return position

    def _forget(self, upto: int) -> None:
        del self._buffer[: upto - self._consumed]
        self._consumed = upto
        self._offsets = []

    def _too_long(self) -> NotForward:
        return NotForward(f"a message is longer than {self.max_bytes} bytes (--forward-chunk-bytes)")

    def _give_up(self, why: NotForward) -> None:
        self.broken = why
        self._buffer.clear()
        self._scanner = None


def _scanner() -> msgpack.Unpacker:
    return msgpack.Unpacker(max_buffer_size=0, strict_map_key=False)


def _describe(start: bytearray) -> str:
    hint = next((hint for prefix, hint in _FOREIGN if start.startswith(prefix)), "no Forward message begins like this")
    return f"{hint}: {_shown(start)}"


def _shown(start: bytearray) -> str:
    return repr(bytes(start[:_SHOWN_BYTES]))
