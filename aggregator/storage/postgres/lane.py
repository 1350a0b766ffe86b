"""One lane: batches one after the other, each until it is known what has become of it.

What is unknown is told to nobody: the same part is sent again with the same token, for as long as it takes, and no
later batch overtakes it. Found again in a block with its token, it was stored by an earlier attempt; else its events
are duplicates.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from dataclasses import dataclass
from typing import Final

from aggregator.storage.engine import StorageBusy, StorageError, StorageFailed, StorageFull
from aggregator.storage.postgres import arrays, schema
from aggregator.storage.postgres.batch import TYPES, Part
from aggregator.storage.postgres.errors import LINK_ERRORS, is_unknown, storage_error
from aggregator.storage.postgres.link import Link

log = logging.getLogger("aggregator")

RETRY_S: Final = 0.2
"""Pause before a part is sent again."""

_PARAMETERS: Final = ", ".join(f"${number}" for number in range(1, len(TYPES) + 1))
_APPEND: Final = f"SELECT start, received_at, again, stored FROM {{lane}}.append({_PARAMETERS})"
_HOLD: Final = "SELECT floor FROM {lane}.hold($1)"

# Which of these numbers are in blocks of this token.
_OURS: Final = """
SELECT coalesce(array_agg(n), '{{}}') FROM unnest($1) AS found(n) WHERE (
    SELECT b.token = $2 FROM {lane}.blocks b WHERE b.first <= n ORDER BY b.first DESC LIMIT 1
)
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """What has become of a part."""

    numbers: list[int]
    """Of each event; for a duplicate, the older one."""
    duplicates: frozenset[int]
    """Places in the part."""
    received_at: int


class Lane:
    """One lane of the store."""

    def __init__(self, number: int, link: Link, standbys: int) -> None:
        self.number = number
        self.blocked: str | None = None
        """Why nothing may be appended at the moment."""
        self.unknown_appends = 0
        """How often the outcome of an attempt was unknown."""
        self.last = 0
        """The last number that was stored by us."""
        name = schema.lane_name(number)
        self._append = _APPEND.format(lane=name).encode()
        self._hold = _HOLD.format(lane=name).encode()
        self._ours = _OURS.format(lane=name).encode()
        self._link = link
        self._standbys = struct.pack("!i", standbys)
        self._turn = asyncio.Lock()

    async def append(self, part: Part) -> Stored:
        """Store a part durably. Raises StorageFull or StorageFailed."""
        async with self._turn:
            while True:
                try:
                    stored = await self._try(part)
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
        """Commit what changes nothing. Raises StorageFull, StorageBusy or StorageFailed."""
        async with self._turn:
            try:
                await self._link.execute(self._hold, [self._standbys], [arrays.INT4])
            except LINK_ERRORS as error:
                raise storage_error(error) from error
            except StorageFailed:
                raise
            except StorageError as error:
                raise StorageBusy(str(error)) from error
            self._unblock()

    async def _try(self, part: Part) -> Stored:
        try:
            row = await self._link.execute(self._append, [*part.values, self._standbys], TYPES)
            start, received_at = (0 if value is None else int.from_bytes(value) for value in row[:2])
            again, known = arrays.read_int4s(row[2]), arrays.read_int8s(row[3])
            ours: set[int] = set()
            if part.unknown and again:
                (found,) = await self._link.execute(
                    self._ours, [row[3], part.token], [arrays.ARRAY_OF[arrays.INT8], arrays.UUID]
                )
                ours = set(arrays.read_int8s(found))
        except LINK_ERRORS as error:
            if is_unknown(error):
                part.unknown = True
                self.unknown_appends += 1
            raise storage_error(error) from error
        numbers = list(range(start, start + len(part.places)))
        duplicates = set()
        for place, number in zip(again, known, strict=True):
            numbers[place - 1] = number
            if number not in ours:
                duplicates.add(place - 1)
        if len(again) < len(numbers):
            self.last = max(self.last, start + len(numbers) - 1)
        elif ours:
            self.last = max(self.last, *ours)
        return Stored(numbers, frozenset(duplicates), received_at)

    def _block(self, why: str) -> None:
        if self.blocked != why:
            log.error("events are not being stored in lane %d: %s", self.number, why)
        self.blocked = why

    def _unblock(self) -> None:
        if self.blocked is not None:
            log.info("events are being stored in lane %d again", self.number)
        self.blocked = None

    async def close(self) -> None:
        """Let go of its connection."""
        await self._link.close()
