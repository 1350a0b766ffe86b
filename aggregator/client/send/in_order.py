"""Things that end in any order, but count in the order in which they began."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class InOrder(Generic[_T]):
    """A queue whose members may end in any order, but leave only at its head."""

    def __init__(self) -> None:
        self._waiting: deque[_T] = deque()
        self._early: set[int] = set()  # ended, but not at the head
        self._empty: asyncio.Event | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def begin(self, one: _T) -> None:
        self._waiting.append(one)

    def end(self, one: _T) -> list[_T]:
        """End a member; return the members that leave the queue by this, in order."""
        if self._waiting[0] is not one:
            self._early.add(id(one))
            return []
        left = [self._waiting.popleft()]
        while self._early and id(self._waiting[0]) in self._early:
            self._early.discard(id(self._waiting[0]))
            left.append(self._waiting.popleft())
        if self._empty and not self._waiting:
            self._empty.set()
        return left

    async def empty(self) -> None:
        """Wait until nothing is left."""
        if self._waiting:
            self._empty = asyncio.Event()
            await self._empty.wait()
            self._empty = None
