"""One connection to a server: it authenticates first, receives whole replies, and gives the reason why it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from aggregator.client.reply import MAX_REPLY_BYTES, NotOurProtocol, Unknown, decode, reason
from aggregator.wire import Status
from aggregator.wire.lines import LineSplitter


class NotKnown(Exception):
    """The server does not accept our token. It may accept the token later."""


def auth_line(token: str) -> bytes:
    """The first line of a connection, which authenticates the client."""
    return f"AUTH {token}\n".encode()


def take_auth_reply(reply: bytes | None) -> None:
    """Check the reply to that line. Raises NotKnown."""
    try:
        fields = decode(reply or b"")
    except NotOurProtocol as error:
        raise NotKnown(str(error)) from error
    if fields["status"] != Status.OK:
        raise NotKnown(f"{fields.get('code')}: {fields.get('detail')}")


class Connection(asyncio.Protocol):
    """Hands on whole replies as they arrive; ``over`` gets the reason why the connection ended.

    With a ``token``, ``auth_line`` is line 1 of the connection, and its reply is not handed on.
    """

    transport: asyncio.Transport

    def __init__(self, on_replies: Callable[[list[bytes | None]], None], token: str | None = None) -> None:
        self._on_replies = on_replies
        self._token = token  # until the server has answered it
        self._splitter = LineSplitter(MAX_REPLY_BYTES)
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[str] = self._loop.create_future()
        self.has_spoken = False
        self.heard_at = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports do not have this class
        if self._token:
            self.transport.write(auth_line(self._token))

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        self.has_spoken = True
        replies = self._splitter.feed(data)
        try:
            if self._token and replies:
                take_auth_reply(replies.pop(0))
                self._token = None
                if not replies:
                    return
            self._on_replies([data] if self._splitter.foreign else replies)
        except (Unknown, NotKnown) as why:
            self.end(str(why))

    def eof_received(self) -> None:
        self.end("lost the connection: closed by the server")  # no reply will come any more

    def connection_lost(self, error: Exception | None) -> None:
        self.end(f"lost the connection: {reason(error) if isinstance(error, OSError) else error}")

    def end(self, why: str) -> None:
        """Drop the connection, unless it has ended already."""
        if not self.over.done():
            self.over.set_result(why)
            self.transport.abort()
