"""The transport of a client of a TLS port, as its protocol sees it: the bytes are decrypted."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from aggregator.server.credentials import Credentials


class Layer(Protocol):
    """The encrypted connection below the transport."""

    is_cut: bool
    """Whether the peer's stream has ended without a close_notify."""

    def pause(self) -> None:
        """Stop reading: the protocol wants nothing for now."""

    def resume(self) -> None:
        """Read on: the protocol wants more."""

    def write(self, data: bytes) -> None:
        """Encrypt and send."""

    def close_half(self) -> None:
        """End our half of the stream."""


class TlsTransport(asyncio.Transport):
    """The transport that the client's protocol sees. Buffers and their limits are those of the plain transport."""

    def __init__(self, layer: Layer, plain: asyncio.Transport, credentials: Credentials) -> None:
        super().__init__()
        self._layer = layer
        self._plain = plain
        self._credentials = credentials

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "credentials":
            return self._credentials
        if name == "is_cut":
            return self._layer.is_cut
        return self._plain.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._plain.is_closing()

    def pause_reading(self) -> None:
        self._layer.pause()

    def resume_reading(self) -> None:
        self._layer.resume()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._plain.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._plain.get_write_buffer_size()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._layer.write(bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._layer.close_half()

    def close(self) -> None:
        self._layer.close_half()
        self._plain.close()

    def abort(self) -> None:
        self._plain.abort()
