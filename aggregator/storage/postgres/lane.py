"""One lane: batches one after the other, each until its outcome is known.

Nobody is told of an unknown outcome. Instead the same part is sent again with the same token until its outcome is
known, and no later batch overtakes it. Events that are then found in a block with the part's token were stored by an
earlier attempt; events that are found in another block are duplicates.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aggregator.storage.engine import StorageBusy, StorageError, StorageFailed, StorageFull
from aggregator.storage.postgres import arrays, schema
from aggregator.storage.postgres.batch import TYPES, Part
from aggregator.storage.postgres.errors import LINK_ERRORS, is_unknown, storage_error
from aggregator.storage.postgres.link import RETRY_S, Connection, Link, Statement, execute
from aggregator.storage.postgres.topics import Topics

log = logging.getLogger("aggregator")

_PARAMETERS: Final = ", ".join(f"${number}" for number in range(1, len(TYPES) + 1))
_APPEND: Final = f"SELECT start, received_at, again, stored FROM {{lane}}.append({_PARAMETERS})"
_HOLD: Final = "SELECT floor FROM {lane}.hold($1)"
_DURABLE: Final = "SELECT {lane}.durable($1)"

_TOPICS: Final = """
SELECT count(*) FROM unnest(%s::text[], %s::int[]) AS p(name, id) JOIN aggregator.topics t ON t.name = p.name
WHERE t.id = p.id AND t.lane = %s
"""

# The given numbers that are in blocks with this token.
_OURS: Final = """
SELECT coalesce(array_agg(n), '{{}}') FROM unnest($1) AS found(n) WHERE (
    SELECT b.token = $2 FROM {lane}.blocks b WHERE b.first <= n ORDER BY b.first DESC LIMIT 1
)
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """The outcome of a part that is stored."""

    numbers: list[int]
    """The number of each event; for a duplicate, the number of the older copy."""
    duplicates: frozenset[int]
    """The places of duplicates in the part."""
    received_at: int


class _TopicsLost(Exception):
    """The primary does not have the topics of a part, because it was promoted before it had received them."""


class Lane:
    """One lane of the store."""

    def __init__(self, number: int, link: Link, topics: Topics, standbys: int) -> None:
        self.number = number
        self.blocked: str | None = None
        """Why nothing can be appended at the moment, if nothing can."""
        self.unknown_appends = 0
        """How often the outcome of an attempt was unknown."""
        self.last = 0
        """The highest number that this server has stored."""
        name = schema.lane_name(number)
        self._append = _APPEND.format(lane=name).encode()
        self._hold = _HOLD.format(lane=name).encode()
        self._ours = _OURS.format(lane=name).encode()
        self._link = link
        self._topics = topics
        self._standbys = struct.pack("!i", standbys)
        # Only after the commit is it known whether the commit has waited for the standbys.
        durable = Statement(_DURABLE.format(lane=name).encode(), [self._standbys], [arrays.INT4])
        self._confirmation = durable if standbys else None
        self._turn = asyncio.Lock()

    async def append(self, part: Part, cut_again: Callable[[], Awaitable[None]]) -> Stored:
        """Store a part durably. Raises StorageFull or StorageFailed.

        ``cut_again`` gives the part the new ids of its topics, if the old ids are lost.
        """
        async with self._turn:
            while True:
                try:
                    stored = await self._try(part)
                except _TopicsLost as error:
                    if part.unknown:
                        raise StorageFailed("topics of a batch were lost, and the batch may be stored") from error
                    log.warning("lane %d: a failover has lost topics; they are made again", self.number)
                    await cut_again()
                except StorageFailed:
                    raise
                except StorageFull:
                    if not part.unknown:
                        raise
                    self._block("no space, and an earlier attempt is unknown")
                except StorageError as error:
                    self._block(str(error))
                else:
                    self._unblock()
                    return stored
                await asyncio.sleep(RETRY_S)

    async def probe(self) -> None:
        """Commit something that changes nothing. Raises StorageFull, StorageBusy or StorageFailed."""
        async with self._turn:
            try:
                hold = Statement(self._hold, [self._standbys], [arrays.INT4])
                await self._link.run(lambda connection: execute(connection, hold, self._confirmation))
            except LINK_ERRORS as error:
                raise storage_error(error) from error
            except StorageFailed:
                raise
            except StorageError as error:
                raise StorageBusy(str(error)) from error
            self._unblock()

    async def _try(self, part: Part) -> Stored:
        try:
            row = await self._link.run(lambda connection: self._send(connection, part))
            start, received_at = (0 if value is None else int.from_bytes(value) for value in row[:2])
            again, known = arrays.read_int4s(row[2]), arrays.read_int8s(row[3])
            ours: set[int] = set()
            if part.unknown and again:
                ask = Statement(self._ours, [row[3], part.token], [arrays.ARRAY_OF[arrays.INT8], arrays.UUID])
                (found,) = await self._link.run(lambda connection: execute(connection, ask))
                ours = set(arrays.read_int8s(found))
        except LINK_ERRORS as error:
            if is_unknown(error):
                part.unknown = True
                self.unknown_appends += 1
            raise storage_error(error) from error
        numbers = list(range(start, start + len(part.places)))
        duplicates = set()
        for place, number in zip(again, known, strict=True):
            numbers[place] = number
            if number not in ours:
                duplicates.add(place)
        if len(again) < len(numbers):
            self.last = max(self.last, start + len(numbers) - 1)
        elif ours:
            self.last = max(self.last, *ours)
        return Stored(numbers, frozenset(duplicates), received_at)

    async def _send(self, connection: Connection, part: Part) -> list[bytes | None]:
        if part.generation != (generation := self._topics.generation):  # the connection may be a new one
            parameters = (list(part.topics), list(part.topics.values()), self.number)
            count = await (await connection.execute(_TOPICS, parameters)).fetchone()
            if count != (len(part.topics),):
                raise _TopicsLost
            part.generation = generation
        append = Statement(self._append, [*part.values, self._standbys], TYPES)
        return await execute(connection, append, self._confirmation)

    def _block(self, why: str) -> None:
        if self.blocked != why:
            log.error("events are not being stored in lane %d: %s", self.number, why)
        self.blocked = why

    def _unblock(self) -> None:
        if self.blocked is not None:
            log.info("events are being stored in lane %d again", self.number)
        self.blocked = None

    async def close(self) -> None:
        """Close its connection."""
        await self._link.close()
