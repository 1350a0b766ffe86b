"""One connection to a server: whole replies in, and the reason why it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from aggregator.client.reply import MAX_REPLY_BYTES, Unknown, reason
from aggregator.wire.lines import LineSplitter


class Connection(asyncio.Protocol):
    """Hands on whole replies as they arrive; ``over`` gets the reason why the connection ended."""

    transport: asyncio.Transport

    def __init__(self, on_replies: Callable[[list[bytes | None]], None]) -> None:
        self._on_replies = on_replies
        self._splitter = LineSplitter(MAX_REPLY_BYTES)
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[str] = self._loop.create_future()
        self.has_spoken = False
        self.heard_at = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by their class

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        self.has_spoken = True
        replies = self._splitter.feed(data)
        try:
            self._on_replies([data] if self._splitter.foreign else replies)
        except Unknown as why:
            self.end(str(why))

    def eof_received(self) -> None:
        self.end("lost the connection: closed by the server")  # it replies to nothing any more

    def connection_lost(self, error: Exception | None) -> None:
        self.end(f"lost the connection: {reason(error) if isinstance(error, OSError) else error}")

    def end(self, why: str) -> None:
        """Drop the connection, unless it has ended already."""
        if not self.over.done():
            self.over.set_result(why)
            self.transport.abort()
