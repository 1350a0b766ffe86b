"""Whether other servers may have stored something. A notification is a hint, on which nothing relies.

A notification in a batch's own transaction would make the commits of all lanes wait for each other. So a server
notifies the others after its commits, in a transaction that waits for nothing, at most once in NOTIFY_S.
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
"""How long a server waits for a hint before it looks without one. Any server should deliver an event within 250 ms of
its ack."""

LISTEN_S: Final = 5.0
"""How long one call waits for hints. Keepalives detect a dead listening connection, but something has to ask for the
result."""

NOTIFY_S: Final = 0.02
"""The shortest time between two notifications from a server to the others."""

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
        """Tell all servers that this server has stored something."""
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
        """Close the connection at once, because it nearly always waits for a hint."""
        for task in (self._listening, self._telling):
            if task:
                task.cancel()
        await self._link.close(wait_s=0)


async def _notified(connection: Connection) -> bool:
    return bool([hint async for hint in connection.notifies(timeout=LISTEN_S, stop_after=1)])
