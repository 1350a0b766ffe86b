"""The seam between the server and what keeps its events: an Engine, its batches, its commits, and its errors.

The server knows this file and nothing behind it; an engine knows neither the wire nor the server. Events are handed
over in batches:

- ``new_batch`` makes a batch, which takes events as they arrive. Batches are appended in the order in which they were
  filled.
- ``prepare`` may do part of the work of a full batch while other batches are on their way.
- ``append`` makes a batch durable, but for its duplicates, and says the seq of each event. Up to ``appends_at_once``
  batches may be on their way at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from aggregator.event import Events
from aggregator.metric import Metric


class StorageError(Exception):
    """What an engine raises. The text is one line, in the engine's own words, for an administrator."""

    def __init__(self, why: str) -> None:
        super().__init__(" ".join(why.split("\n")))  # a quoted schema or a path may hold line ends


class StorageFull(StorageError):
    """Nothing of the batch was stored, because there is no space. Later batches may succeed."""


class StorageBusy(StorageError):
    """Nothing of the batch was stored, because nothing may be appended at the moment. Append it again later."""


class StorageFailed(StorageError):
    """Unknown whether the batch is stored. This engine must not be used again."""


class StorageUnreadable(StorageError):
    """What was asked for could not be read."""


class StorageUnusable(StorageError):
    """The store cannot be opened."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Events of one batch that are durable."""

    seqs: Sequence[int]
    """The seq of each event, in order; for a duplicate, the seq that was not used."""
    duplicates: Mapping[int, int]
    """The older seq of each event that was stored before, by the event's position in the whole batch."""
    offset: int = 0
    """The position of the first of these events in the whole batch."""

    def seq(self, position: int) -> int:
        """The seq under which one of these events is stored."""
        older = self.duplicates.get(self.offset + position)
        return self.seqs[position] if older is None else older

    def part(self, start: int, count: int) -> Commit:
        """What became of ``count`` of these events, from ``start`` on."""
        return Commit(self.seqs[start : start + count], self.duplicates, self.offset + start)


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it was sent (a JSON object, UTF-8), and what the engine knows of it."""

    seq: int
    received_at: int
    """Milliseconds since 1970, UTC."""
    json: bytes


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic with the number of its events and the seq of the newest."""

    name: str
    stored: int
    last_seq: int


class Batch(Protocol):
    """Events in the order in which they came, not stored yet."""

    def __len__(self) -> int: ...

    @property
    def size_bytes(self) -> int:
        """The total length of the events' JSON."""

    def add(self, events: Events) -> None:
        """Take more events."""


B = TypeVar("B", bound=Batch)


class Engine(Protocol[B]):
    """Keeps events. Made by ``storage.open``; must be closed."""

    @property
    def name(self) -> str:
        """What it is, as in ``STATS``, ``versions``."""

    @property
    def version(self) -> str:
        """The version of what it is made of."""

    @property
    def location(self) -> str:
        """Where the events are, for the log."""

    @property
    def appends_at_once(self) -> int:
        """How many batches may be on their way at a time."""

    @property
    def stored_total(self) -> int:
        """Events that are stored."""

    @property
    def topics_total(self) -> int:
        """Topics that have events."""

    def new_batch(self) -> B:
        """An empty batch."""

    async def prepare(self, batch: B) -> None:
        """Do what can be done for a full batch before its turn has come. Raises StorageError as ``append`` does."""

    async def append(self, batch: B) -> Commit:
        """Store a batch durably. Raises StorageFull, StorageBusy or StorageFailed.

        Cancelling it says nothing about what was stored.
        """

    async def probe(self) -> None:
        """Commit something that changes nothing. Raises as ``append`` does, so it tells whether space is back."""

    async def verify(self) -> None:
        """Check that what is stored is still where a start will find it. Raises StorageFailed. Called once a second."""

    @property
    def upkeep_due(self) -> bool:
        """Whether ``upkeep(quiet=False)`` has something to do."""

    @property
    def upkeep_left(self) -> bool:
        """Whether ``upkeep(quiet=True)`` has something to do."""

    async def upkeep(self, quiet: bool) -> bool:
        """Keep the store in order: what is due beside the batches, or in quiet times a piece of whatever is left.

        Return whether more is left that can be done at once. Raises StorageFailed; whatever else keeps it from its
        work is in ``troubles``, and tried again later.
        """

    async def event(self, topic: str, event_id: str) -> StoredEvent | None:
        """The event with this key. Raises StorageUnreadable."""

    async def events(self, topic: str, limit: int, after: int | None, max_bytes: int) -> tuple[list[StoredEvent], bool]:
        """Without ``after`` the newest events, newest first; with it the oldest past that seq, oldest first.

        Cut short where they would exceed ``max_bytes`` together, but never to none; the second value tells. Raises
        StorageUnreadable.
        """

    async def topics(self, limit: int, after: str) -> list[Topic]:
        """The topics whose name comes after ``after`` (in order of code points). Raises StorageUnreadable."""

    def gauges(self) -> Iterable[Metric]:
        """The engine's own numbers, for ``STATS``."""

    def troubles(self) -> Mapping[str, str | None]:
        """What the engine checks of itself, for ``HEALTH``: what is wrong with each, or None. None of it stops acks."""

    async def close(self) -> None:
        """Give up the store; another process may open it then."""


AnyEngine = Engine[Any]
"""An engine, whatever its batches are: only the engine itself looks into them."""
