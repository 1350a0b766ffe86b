"""Cursors: how far the reader of a name has come, kept in the store, so that it can go on after a crash of either side.

Acks are merged: one statement stores all cursors that have moved, at most SAVES_PER_S times a second. An ack is
answered when it is on disk.

If servers share the store, the newest reader of a name has the claim to it, whichever server that reader is on. The
store moves a cursor for the last claim only. Each server checks now and then whether its readers have lost their
claims.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from aggregator.access.identity import RESERVED, Identity
from aggregator.server.purpose import owner_of, to_json
from aggregator.server.subscription import Subscription
from aggregator.storage.engine import AnyEngine, Cursor, Position, StorageBusy, StorageError, StorageFailed
from aggregator.wire.interest import Interest

MAX_CURSORS: Final = 1000
"""Names that the store keeps."""

SAVES_PER_S: Final = 20
"""Statements a second, for all cursors together: each is an fsync that commits wait for."""

FOLLOW_S: Final = 1.0
"""How often cursors are moved past events that do not match, if their readers have acked everything they were sent."""


class Cursors:
    """All names of one store. ``load`` comes first, then ``start``."""

    def __init__(
        self,
        engine: AnyEngine,
        on_failure: Callable[[StorageFailed], None],
        on_loss: Callable[[Subscription, str | None, str], None],
    ) -> None:
        """``on_loss`` gets a reader that has lost its name, the peer on another server that has taken the name, and the
        name. The peer is None if the name was removed."""
        self._engine = engine
        self._on_failure = on_failure
        self._on_loss = on_loss
        self._claims: dict[str, str] = {}  # by name, the last claim that a client of this server has made
        self._cursors: dict[str, Cursor] = {}
        self._readers: dict[str, Subscription] = {}
        self._changed: set[str] = set()
        self._gone: set[str] = set()
        self._under_way: set[str] = set()  # changed or gone, and being stored
        self._waiting: list[asyncio.Future[None]] = []  # done when all changes so far are on disk
        self._something_changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def load(self) -> None:
        """Read the cursors of the store."""
        self._cursors = {cursor.name: cursor for cursor in await self._engine.cursors()}

    def start(self) -> None:
        """Begin to store changes."""
        self._tasks = [asyncio.create_task(self._store()), asyncio.create_task(self._follow())]

    async def stop(self) -> None:
        """Stop storing changes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._cursors)

    def get(self, name: str) -> Cursor | None:
        """The cursor of this name."""
        return self._cursors.get(name)

    def listed(self) -> Sequence[Cursor]:
        """All cursors, by name."""
        return [self._cursors[name] for name in sorted(self._cursors)]

    def reader(self, name: str) -> Subscription | None:
        """The subscription that reads under this name now."""
        reader = self._readers.get(name)
        return reader if reader and not reader.over else None

    def took(self, name: str, subscription: Subscription) -> None:
        """From now on this subscription reads under the name."""
        self._readers[name] = subscription

    def move(
        self, name: str, interest: Interest, position: Position, reader: Identity, claim: str | None = None
    ) -> None:
        """Set or make a cursor. It is durable after ``on_disk``; on a shared store, only if ``claim`` still holds."""
        self._set(Cursor(name, self._purpose(name, interest, reader), position, _now(), claim or ""))

    def forget(self, name: str) -> bool:
        """Remove a cursor; return whether there was one. It is durable after ``on_disk``."""
        known = self._cursors.pop(name, None) is not None
        if known:
            self._changed.discard(name)
            self._gone.add(name)
        return known

    async def claim(self, name: str, interest: Interest, start: Position, reader: Identity, peer: str) -> str | None:
        """Make a client the reader of a name on a shared store, and return its claim; a new name begins at ``start``.

        None if the name in the store differs from what is known here: ``refresh`` finds out its present state. Raises
        what ``Engine.claim_cursor`` raises.
        """
        claim = f"{peer} {secrets.token_hex(4)}"
        known = self._cursors.get(name)
        wanted = Cursor(name, self._purpose(name, interest, reader), start, _now(), claim)
        cursor = await self._engine.claim_cursor(wanted, known.interest if known else None)
        if cursor is None:
            return None
        self._cursors[name] = cursor
        self._claims[name] = claim
        return claim

    def is_held(self, name: str, claim: str | None) -> bool:
        """Whether nobody has claimed the name since ``claim``, as far as is known here. Always, if it is not shared."""
        cursor = self._cursors.get(name)
        return not self._engine.shared or (cursor is not None and cursor.claim == claim == self._claims.get(name))

    def holder(self, name: str) -> str:
        """The peer that has claimed the name last."""
        cursor = self._cursors.get(name)
        return _peer(cursor.claim) if cursor else ""

    def _purpose(self, name: str, interest: Interest, reader: Identity) -> str:
        """The purpose of the name from now on.

        A reader that moves a name without an owner becomes its owner. Reserved identities own nothing, because many
        different clients may be anonymous.
        """
        owner = owner_of(known.interest) if (known := self._cursors.get(name)) else None
        if owner is None and reader.name not in RESERVED:
            owner = reader.name
        return to_json(interest, owner)

    async def refresh(self) -> None:
        """Find out what readers on other servers have done. Raises StorageUnreadable."""
        if not self._engine.shared:
            return
        before = self._cursors.copy()
        found = {cursor.name: cursor for cursor in await self._engine.cursors()}
        for name in before.keys() | found.keys() | self._cursors.keys():
            ours = self._cursors.get(name)
            if ours is not before.get(name) or name in self._changed | self._gone | self._under_way:
                continue  # this server has changed it since
            if name in found:
                self._cursors[name] = found[name]
            else:
                self._cursors.pop(name, None)
            if (reader := self.reader(name)) and not self.is_held(name, reader.claim):
                peer = _peer(found[name].claim) if name in found else None
                self._on_loss(reader, peer, name)

    async def on_disk(self, name: str) -> None:
        """Return when all changes to this name are on disk. Raises StorageFull or StorageFailed.

        What could not be stored is kept, and the next call tries again.
        """
        if name in self._changed or name in self._gone or name in self._under_way:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            self._something_changed.set()
            await future

    def _set(self, cursor: Cursor) -> None:
        self._cursors[cursor.name] = cursor
        self._gone.discard(cursor.name)
        self._changed.add(cursor.name)
        self._something_changed.set()

    async def _store(self) -> None:
        """Store changes, for ever. What could not be stored is tried again with the next change."""
        while True:
            await self._something_changed.wait()
            self._something_changed.clear()
            changed, gone, waiting = self._changed, self._gone, self._waiting
            self._changed, self._gone, self._waiting = set(), set(), []
            self._under_way = changed | gone
            try:
                moved = [self._cursors[name] for name in changed]
                lost = await self._engine.save_cursors(moved, list(gone))
            except Exception as caught:
                error = caught if isinstance(caught, StorageError) else StorageFailed(f"a defect: {caught!r}")
                self._changed |= changed & self._cursors.keys()
                self._gone |= self._under_way - self._cursors.keys()
                if isinstance(error, StorageBusy):  # nobody is told anything, because it is tried again
                    self._waiting = waiting + self._waiting
                    self._something_changed.set()
                else:
                    _tell(waiting, error)
                if isinstance(error, StorageFailed):
                    self._on_failure(error)
                    return
            else:
                self._under_way = set()
                if lost:
                    self._lose([cursor for cursor in moved if cursor.name in lost])
                    with contextlib.suppress(StorageError):  # then the new holders are found out a little later
                        await self.refresh()
                _tell(waiting, None)
            self._under_way = set()
            await asyncio.sleep(1 / SAVES_PER_S)

    def _lose(self, lost: Sequence[Cursor]) -> None:
        """Forget the claims of these cursors: they hold no longer. A newer claim made on this server may still hold."""
        for cursor in lost:
            if self._claims.get(cursor.name) == cursor.claim:
                del self._claims[cursor.name]
            if (known := self._cursors.get(cursor.name)) and known.claim == cursor.claim:
                self._changed.discard(cursor.name)

    async def _follow(self) -> None:
        """For ever, move cursors past events that do not match, if their readers have acked all that they were sent."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            if self._readers:
                with contextlib.suppress(StorageError):
                    await self.refresh()
            for name, reader in list(self._readers.items()):
                cursor = self._cursors.get(name)
                if reader.over or cursor is None:
                    del self._readers[name]
                elif cursor.acked == reader.sent != reader.position and self.is_held(name, reader.claim):
                    reader.sent = reader.position
                    self._set(replace(cursor, acked=reader.position))


def _peer(claim: str) -> str:
    return claim.rpartition(" ")[0]


def _now() -> int:
    return time.time_ns() // 1_000_000


def _tell(waiting: Sequence[asyncio.Future[None]], error: StorageError | None) -> None:
    for future in waiting:
        if not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
