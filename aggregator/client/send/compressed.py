"""Compressed bytes to plain bytes, piece by piece: a small file may unpack to any size, but memory stays bounded."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from typing import Any, Final

PIECE_BYTES: Final = 256 << 10
"""Most that is unpacked at a time."""

_GZIP: Final = 16 + zlib.MAX_WBITS


class Damaged(Exception):
    """The compressed bytes are not what they claim to be, or end too early."""


class Decoder:
    """Unpacks gzip, bzip2 or xz; also files that are several such streams, one after the other."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._stream: Any = None  # None between two streams

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next compressed bytes; yield what they unpack to. Raises Damaged."""
        try:
            while data or self._has_more():
                if self._stream is None:
                    data = data.lstrip(b"\0")  # padding
                    if not data:
                        return
                    self._stream = self._open()
                text, data = self._unpack(data)
                if text:
                    yield text
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise Damaged(f"damaged {self._kind} data ({str(error).rstrip('.')})") from None

    def finish(self) -> None:
        """Take the end of the file. Raises Damaged."""
        if self._stream is not None:
            raise Damaged(f"its {self._kind} data ends too early")

    def _open(self) -> Any:
        if self._kind == "gzip":
            return zlib.decompressobj(_GZIP)
        return bz2.BZ2Decompressor() if self._kind == "bzip2" else lzma.LZMADecompressor()

    def _has_more(self) -> bool:
        """Whether there is more to unpack without more input."""
        return self._stream is not None and not getattr(self._stream, "needs_input", True)

    def _unpack(self, data: bytes) -> tuple[bytes, bytes]:
        """One piece, and the compressed bytes that are left."""
        stream = self._stream
        text = stream.decompress(data, PIECE_BYTES)
        if stream.eof:
            self._stream = None
            return text, stream.unused_data
        if self._kind == "gzip":
            return text, stream.unconsumed_tail
        return text, b""
