"""Whether other servers may have stored something: a notification is a hint, and nobody relies on it.

A notification in a batch's own transaction would make the commits of all lanes wait for each other. So a server
notifies the others after its commits, at most so often, in a transaction that waits for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

from aggregator.storage.engine import StorageError
from aggregator.storage.postgres.errors import LINK_ERRORS
from aggregator.storage.postgres.link import RETRY_S, Connection, Link
from aggregator.storage.postgres.query import Query

LOOK_S: Final = 0.2
"""A look without a hint. An event is to be delivered within 250 ms of its ack on any server."""

LISTEN_S: Final = 5.0
"""The listening connection is found to be dead by its keepalives, which something has to ask for."""

NOTIFY_S: Final = 0.02
"""A server notifies the others at most so often."""

CHANNEL: Final = "aggregator"


async def listen(connection: Connection) -> None:
    """Prepare a connection to wait for hints."""
    await connection.execute(f"LISTEN {CHANNEL}")


class News:
    """Hints to and from other servers."""

    def __init__(self, query: Query, new_link: Callable[[], Link]) -> None:
        self._query = query
        self._link = new_link()
        self._something_new = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None
        self._told_at = 0.0
        self._listening = asyncio.create_task(self._listen())

    async def wait(self) -> None:
        """Return when there may be something new, at the latest after LOOK_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._something_new.wait()
        self._something_new.clear()

    def tell(self) -> None:
        """Something was stored here."""
        self._something_new.set()
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        await asyncio.sleep(max(0.0, self._told_at + NOTIFY_S - time.monotonic()))
        self._told_at = time.monotonic()
        with contextlib.suppress(StorageError):
            await self._query.write(f"NOTIFY {CHANNEL}")

    async def _listen(self) -> None:
        while True:
            try:
                if await self._link.run(_notified):
                    self._something_new.set()
            except (*LINK_ERRORS, StorageError):
                await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Let go of the connection at once: it nearly always waits for a hint."""
        for task in (self._listening, self._telling):
            if task:
                task.cancel()
        await self._link.close(wait_s=0)


async def _notified(connection: Connection) -> bool:
    return bool([hint async for hint in connection.notifies(timeout=LISTEN_S, stop_after=1)])
