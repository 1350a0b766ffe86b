"""The seam between the server and its store: an Engine, its batches, its commits, and its errors.

The server knows this file and nothing behind it. An engine knows neither the wire nor the server. Events are handed
over in batches:

- ``new_batch`` makes a batch, which takes events as they arrive. Batches are appended in the order in which they were
  filled.
- ``prepare`` may do part of the work of a full batch while other batches are being appended.
- ``append`` makes a batch durable, except its duplicates, and returns the seq of each event. Up to ``appends_at_once``
  batches may be appended at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from aggregator.event import Events
from aggregator.metric import Metric


class StorageError(Exception):
    """The base of an engine's errors. The text is one line, in the engine's own words, for an administrator."""

    def __init__(self, why: str) -> None:
        super().__init__(" ".join(why.split("\n")))  # a quoted schema or a path may contain line feeds


class StorageFull(StorageError):
    """The batch was not stored, because there is no space. Later batches may succeed.

    In an engine with several lanes, the lanes that have space may have stored their part of the batch. When the batch
    is sent again, the events of that part are duplicates.
    """


class StorageBusy(StorageError):
    """Nothing can be stored at the moment. Try again later.

    No event of a batch was stored. Any other write may have been carried out; writing it twice does no harm.
    """


class StorageFailed(StorageError):
    """Unknown whether the batch is stored. This engine must not be used again."""


class StorageUnreadable(StorageError):
    """The requested data could not be read."""


class StorageUnusable(StorageError):
    """The store cannot be opened."""


@dataclass(slots=True)  # a frozen one takes three times as long to make, and each submission gets its own
class Commit:
    """Events of one batch that are durable."""

    seqs: Sequence[int]
    """The seq of each event, in order. For a duplicate, only ``duplicates`` counts."""
    duplicates: Mapping[int, int]
    """The older seq of each event that was stored before, by the event's position in the whole batch."""
    received_at: int
    """When the engine began to store the events: milliseconds since 1970, UTC. Within a lane it never decreases."""
    offset: int = 0
    """The position of the first of these events in the whole batch."""

    def seq(self, position: int) -> int:
        """The seq under which one of these events is stored."""
        older = self.duplicates.get(self.offset + position)
        return self.seqs[position] if older is None else older

    def part(self, start: int, count: int) -> Commit:
        """The commit of ``count`` of these events, from ``start`` on."""
        return Commit(self.seqs[start : start + count], self.duplicates, self.received_at, self.offset + start)


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it was sent (a JSON object, UTF-8), with its seq and the time of its receipt."""

    seq: int
    received_at: int
    """Milliseconds since 1970, UTC."""
    json: bytes


Position = int | str
"""How far a reader has come, in the form that replies show: a number if the store has one order of events, a text if it
has several (``aggregator.position``). On the server only the engine interprets a position. All other code may only test
positions for equality, because each of two positions may be ahead of the other in some lane."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Stored events that were committed together, in order, as columns."""

    seqs: Sequence[int]
    json: Sequence[bytes]
    received_at: int
    topics: Sequence[str] = ()
    """The topic of each event. A shared engine sets it, because the server delivers its events as it reads them."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The result of one read, which is a bounded piece of work."""

    stretches: Sequence[Stretch]
    """In the order of reading. Within each stretch the seqs ascend."""
    position: Position
    """How far the read has looked; the next read starts here."""
    gap: Position | None = None
    """If set, the store no longer has the events between the reader's position and this one."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the reader of a name has come."""

    name: str
    interest: str
    """What the name was made for, in a text that only the server interprets."""
    acked: Position
    acked_at: int
    """Milliseconds since 1970, UTC."""
    claim: str = ""
    """Identifies the reader that uses the name, among the readers of all servers. Only a shared engine needs it."""


class Wanted(Protocol):
    """Which events a reader wants. This lets an engine examine fewer events; it may return unwanted events too."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """The topics, if the reader named all of them."""

    @property
    def all_topics(self) -> bool:
        """Whether every topic is wanted."""

    @property
    def needle(self) -> bytes | None:
        """Bytes that occur in the JSON of each event that is wanted."""

    def wants_topic(self, name: str) -> bool:
        """Whether events of this topic may be wanted. The engine leaves out the events of other topics."""


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
        """The name of the engine, as ``STATS`` shows it in ``versions``."""

    @property
    def version(self) -> str:
        """The version of the database software."""

    @property
    def location(self) -> str:
        """Where the events are, for the log."""

    @property
    def appends_at_once(self) -> int:
        """How many batches may be appended at a time."""

    @property
    def shared(self) -> bool:
        """Whether other servers may store here too. ``look`` and ``count`` find out what they have stored."""

    @property
    def stored_total(self) -> int:
        """How many events are stored, as of the last count."""

    @property
    def topics_total(self) -> int:
        """How many topics have events, as of the last count."""

    async def count(self) -> None:
        """Update the totals with what other servers have stored. Raises StorageUnreadable."""

    async def look(self) -> None:
        """Move ``head`` past what other servers have stored. Raises StorageUnreadable."""

    async def news(self) -> None:
        """Return soon after another server, or this one, may have stored something; now and then for no reason."""

    def new_batch(self) -> B:
        """An empty batch."""

    async def prepare(self, batch: B) -> None:
        """Do what can be done for a full batch before it is appended. Raises StorageError as ``append`` does."""

    async def append(self, batch: B) -> Commit:
        """Store a batch durably. Raises StorageFull, StorageBusy or StorageFailed.

        If the call is cancelled, it is unknown what was stored.
        """

    async def probe(self) -> None:
        """Commit something that changes nothing. Raises as ``append`` does, so it tells whether there is space now."""

    async def verify(self) -> None:
        """Check that the store is still where a start will find it. Raises StorageFailed. Called once a second."""

    @property
    def upkeep_due(self) -> bool:
        """Whether ``upkeep(quiet=False)`` has something to do."""

    @property
    def upkeep_left(self) -> bool:
        """Whether ``upkeep(quiet=True)`` has something to do."""

    async def upkeep(self, quiet: bool) -> bool:
        """Maintain the store: do what is due alongside the batches or, in quiet times, a piece of what is left.

        Return whether more is left that can be done at once. Raises StorageFailed. Any other obstacle is shown in
        ``troubles``, and the work is tried again later.
        """

    async def event(self, topic: str, event_id: str) -> StoredEvent | None:
        """The event with this key. Raises StorageUnreadable."""

    @property
    def head(self) -> Position:
        """The position after the newest stored event."""

    @property
    def store_id(self) -> str:
        """A random name that was given to the store when it was created. A position is valid in one store only."""

    def parse_position(self, text: str) -> Position | None:
        """A position that a client sends back; None if the text is not a position.

        The seq of an event is a position too: after the event in its own lane, and at the beginning of all other lanes.
        """

    def advance(self, position: Position, seqs: Sequence[int]) -> Position:
        """The position of a reader that was at ``position`` and then got these, in the order of commits or reading."""

    def retreat(self, position: Position, seqs: Sequence[int]) -> Position:
        """The position of a reader that was at ``position`` and then got these, backwards: before the last of them."""

    def distance(self, earlier: Position, later: Position) -> int:
        """About how many events ``later`` is ahead of ``earlier``: 0 if it is ahead in no lane."""

    def earlier(self, one: Position, other: Position) -> Position:
        """The position after the events that both have passed: one of the two arguments itself, if it is equal."""

    def later(self, one: Position, other: Position) -> Position:
        """The position after the events that either has passed, likewise."""

    async def read(
        self, wanted: Wanted, after: Position, until: Position, background: bool = False, slices: int = 1
    ) -> Slice:
        """The next events past ``after`` and up to ``until``, oldest first: as many as ``slices`` usual slices have.

        When nothing is left, the slice's position is ``until``. A read in the background never holds up other reads.
        Raises StorageUnreadable.
        """

    async def read_back(self, wanted: Wanted, before: Position) -> Slice:
        """The events up to ``before``, newest first: the stretches descend. When nothing is left, the position is 0."""

    async def seek(self, received_at: int) -> Position:
        """The position before the first event that was received at this time or later. Raises StorageUnreadable."""

    async def cursors(self) -> list[Cursor]:
        """The cursors that are stored. Raises StorageUnreadable."""

    async def save_cursors(self, changed: Sequence[Cursor], gone: Sequence[str]) -> Collection[str]:
        """Store and remove cursors durably. Raises StorageFull, StorageBusy or StorageFailed.

        A shared engine does not move a cursor that has another claim by now, or is gone. It returns the names of these
        cursors.
        """

    async def claim_cursor(self, cursor: Cursor, seen: str | None) -> Cursor | None:
        """Create this cursor, or give its claim and interest to the stored cursor of the same name; return the result.

        None if the interest of the stored cursor is neither ``seen`` nor that of ``cursor``. Raises as ``save_cursors``
        does. Only a shared engine needs this.
        """

    async def topics(self, limit: int, after: str) -> list[Topic]:
        """The topics whose name comes after ``after`` (in order of code points). Raises StorageUnreadable."""

    def gauges(self) -> Iterable[Metric]:
        """The engine's own numbers, for ``STATS``."""

    def troubles(self) -> Mapping[str, str | None]:
        """The engine's checks of itself, for ``HEALTH``: what each has found wrong, or None."""

    async def close(self) -> None:
        """Close the store; another process may then open it."""


AnyEngine = Engine[Any]
"""An engine with any type of batch: only the engine itself looks into its batches."""
