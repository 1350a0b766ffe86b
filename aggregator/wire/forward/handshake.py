"""The handshake of Forward: the client proves that it knows the shared key, and so does the server.

The key itself never goes over the wire. Nothing is encrypted. The specification lets a server ask for user names and
passwords; this server does not.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any, Final

import msgpack

from aggregator.wire.forward import NotForward, values
from aggregator.wire.forward.framing import Message

HANDSHAKE_BYTES: Final = 4096
"""Longest message before the client is let in: a PING has a host name and two digests of 128 characters."""

_NONCE_BYTES: Final = 16
_PING_PARTS: Final = 6


class Handshake:
    """One client's handshake. ``hello`` is sent first; ``answer`` says what to reply to the PING."""

    def __init__(self, shared_key: bytes, hostname: str) -> None:
        self._key = shared_key
        self._hostname = hostname
        self._nonce = secrets.token_bytes(_NONCE_BYTES)

    def hello(self) -> bytes:
        """The HELO. Its empty ``auth`` tells the client that the server asks for no user name."""
        return _pack(["HELO", {"nonce": self._nonce, "auth": b"", "keepalive": True}])

    def answer(self, message: Message) -> tuple[bytes, bool]:
        """The PONG to a PING, and whether the client is let in. Raises NotForward for any other message."""
        try:
            parts = [_bytes(values.unpack(message.part(index))) for index in range(min(len(message), 4))]
        except ValueError as error:
            raise NotForward(f"not MessagePack: {error}") from None
        if parts[0] != b"PING" or len(message) != _PING_PARTS:
            raise NotForward("it sent events before the handshake: set its shared_key")
        _, hostname, salt, digest = parts
        if not hmac.compare_digest(digest, self._digest(salt, hostname)):
            return _pack(["PONG", False, "shared_key mismatch", "", ""]), False
        ours = self._hostname.encode()
        return _pack(["PONG", True, "", self._hostname, self._digest(salt, ours).decode()]), True

    def _digest(self, salt: bytes, hostname: bytes) -> bytes:
        return hashlib.sha512(salt + hostname + self._nonce + self._key).hexdigest().encode()


def ack(chunk: str | bytes) -> bytes:
    """The answer to a message that has a chunk, sent after the commit of its events."""
    return _pack({"ack": chunk})


def _bytes(value: Any) -> bytes:
    return value.encode(errors="surrogateescape") if type(value) is str else value if type(value) is bytes else b""


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, unicode_errors="surrogateescape")
    return packed
