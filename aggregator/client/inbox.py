"""What has arrived, in order, and waits for the loop body: bounded in bytes, because the server keeps the rest."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from aggregator.client.delivered import DeliveredEvent
from aggregator.client.query import Position
from aggregator.client.subscription import AnotherStore
from aggregator.wire import Status

MAX_WAITING_BYTES: Final = 1 << 20
"""Above this the socket is not read. One read may exceed it."""

Aside = tuple[Status, Position, dict[str, Any]]
"""A line between deliveries: its status, the reader's position in it, and all of its fields."""

Item = list[DeliveredEvent] | Aside | AnotherStore


class Inbox:
    """Lists of events that were delivered together, and the lines that came between them."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    @property
    def is_full(self) -> bool:
        """Whether no more should be read."""
        return self._bytes >= MAX_WAITING_BYTES

    def put(self, item: Item) -> None:
        """Add an item that has arrived."""
        self._items.append(item)
        if isinstance(item, list):
            self._bytes += sum(len(event.line) for event in item)

    def take(self) -> Item:
        """Remove and return the oldest item."""
        item = self._items.popleft()
        if isinstance(item, list):
            self._bytes -= sum(len(event.line) for event in item)
        return item

    def drop(self) -> int:
        """Forget everything; return how many events were forgotten."""
        events = sum(len(item) for item in self._items if isinstance(item, list))
        self._items.clear()
        self._bytes = 0
        return events
