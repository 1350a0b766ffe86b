"""Statements other than the batches: reads, and small writes. Each kind has a connection of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from aggregator.storage.engine import StorageBusy, StorageError, StorageUnreadable
from aggregator.storage.postgres.errors import LINK_ERRORS, storage_error
from aggregator.storage.postgres.link import RETRY_S, Link

READ_RETRY_S: Final = 10.0
"""How long a read is repeated before its failure is reported: longer than a failover takes."""


class Query:
    """Reads for clients, reads in the background, and small writes never wait for each other.

    ``new_link`` makes a connection. A connection that reads must first prove that what it sees has been replicated.
    """

    def __init__(self, new_link: Callable[[bool], Link]) -> None:
        self._readers = {False: new_link(True), True: new_link(True)}
        self._writer = new_link(False)

    async def read(self, statement: str, parameters: Any = None, background: bool = False) -> list[Any]:
        """The rows of a statement. Raises StorageUnreadable."""
        give_up = time.monotonic() + READ_RETRY_S
        while True:
            try:
                return await self._readers[background].rows(statement, parameters)
            except LINK_ERRORS as error:
                why: StorageError = storage_error(error)
            except StorageError as error:  # raised while connecting
                why = error
            if not isinstance(why, StorageBusy) or time.monotonic() > give_up:
                raise StorageUnreadable(f"cannot read: {why}") from why
            await asyncio.sleep(RETRY_S)

    async def renew(self, background: bool) -> None:
        """Use a new connection for the next reads."""
        await self._readers[background].drop()

    async def write(self, statement: str, parameters: Any = None) -> list[Any]:
        """The rows of a statement that is safe to repeat. Raises StorageFull, StorageBusy or StorageFailed."""
        try:
            return await self._writer.rows(statement, parameters)
        except LINK_ERRORS as error:
            raise storage_error(error) from error

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(link.close() for link in (*self._readers.values(), self._writer)))
