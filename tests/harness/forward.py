"""A Forward client for tests: the test decides every byte."""

from __future__ import annotations

import hashlib
import socket
import struct
from typing import Any, Final

import msgpack

TIMEOUT_S: Final = 60.0


def event_time(second: int, nanoseconds: int = 0) -> msgpack.ExtType:
    return msgpack.ExtType(0, struct.pack(">II", second, nanoseconds))


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, unicode_errors="surrogateescape")
    return packed


def forward(tag: str, records: list[Any], chunk: str | None = None, second: int = 1) -> bytes:
    """One message of mode Forward."""
    option = {} if chunk is None else {"chunk": chunk}
    return pack([tag, [[second, record] for record in records], option])


class ForwardPeer:
    """One connection to a Forward port, seen from the client's side."""

    def __init__(self, port: int, receive_buffer: int | None = None, source: str = "") -> None:
        self.socket = socket.socket()
        if source:
            self.socket.bind((source, 0))
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_S)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self._unpacker = msgpack.Unpacker()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> Any:
        """The next value from the server; None at its end."""
        while True:
            try:
                return self._unpacker.unpack()
            except msgpack.OutOfData:
                pass
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionError:
                return None
            if not data:
                return None
            self._unpacker.feed(data)

    def ask(self, message: bytes) -> Any:
        self.send(message)
        return self.answer()

    def shake_hands(self, key: bytes, hostname: bytes = b"here") -> Any:
        """Answer the HELO with a proof of this key; return the PONG."""
        word, options = self.answer()
        assert word == "HELO"
        salt = b"salt of the client"
        digest = hashlib.sha512(salt + hostname + options["nonce"] + key).hexdigest()
        return self.ask(pack(["PING", hostname, salt, digest, "", ""]))

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> ForwardPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
