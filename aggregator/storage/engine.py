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

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from aggregator.event import Events
from aggregator.metric import Metric


class StorageError(Exception):
    """What an engine raises. The text is one line, in the engine's own words, for an administrator."""

    def __init__(self, why: str) -> None:
        super().__init__(" ".join(why.split("\n")))  # a quoted schema or a path may hold line ends


class StorageFull(StorageError):
    """The batch was not stored, because there is no space. Later batches may succeed.

    Of an engine with several lanes, those that have space may have stored their part: sent again, it is a duplicate.
    """


class StorageBusy(StorageError):
    """Nothing can be stored at the moment. Try again later.

    Nothing of a batch was stored. Whatever else was to be written may be: to write it twice does no harm.
    """


class StorageFailed(StorageError):
    """Unknown whether the batch is stored. This engine must not be used again."""


class StorageUnreadable(StorageError):
    """What was asked for could not be read."""


class StorageUnusable(StorageError):
    """The store cannot be opened."""


@dataclass(slots=True)  # to make a frozen one takes three times as long, and each submission gets its part
class Commit:
    """Events of one batch that are durable."""

    seqs: Sequence[int]
    """The seq of each event, in order; for a duplicate, the seq that was not used."""
    duplicates: Mapping[int, int]
    """The older seq of each event that was stored before, by the event's position in the whole batch."""
    received_at: int
    """When the engine began to store them: milliseconds since 1970, UTC. Within a lane it never falls."""
    offset: int = 0
    """The position of the first of these events in the whole batch."""

    def seq(self, position: int) -> int:
        """The seq under which one of these events is stored."""
        older = self.duplicates.get(self.offset + position)
        return self.seqs[position] if older is None else older

    def part(self, start: int, count: int) -> Commit:
        """What became of ``count`` of these events, from ``start`` on."""
        return Commit(self.seqs[start : start + count], self.duplicates, self.received_at, self.offset + start)


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it was sent (a JSON object, UTF-8), and what the engine knows of it."""

    seq: int
    received_at: int
    """Milliseconds since 1970, UTC."""
    json: bytes


Position = int | str
"""How far a reader has come, as it stands in replies: a number where the store has one order of events, a text where it
has several (``aggregator.position``). On the server only the engine looks into it. All others compare positions for
being the same, because of two positions each may be ahead of the other in a lane."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Stored events that follow each other and were committed together, as columns."""

    seqs: Sequence[int]
    json: Sequence[bytes]
    received_at: int
    topics: Sequence[str] = ()
    """The topic of each event; a shared engine says it, because its events are delivered as they are read."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What was found at one look: a bounded piece of work."""

    stretches: Sequence[Stretch]
    """In the order of reading; within each the seqs rise."""
    position: Position
    """How far was looked: read on from here."""
    gap: Position | None = None
    """All up to here is no longer there, although it is past where the reader was."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the reader of a name has come."""

    name: str
    interest: str
    """What the name was made for, in the words of the server."""
    acked: Position
    acked_at: int
    """Milliseconds since 1970, UTC."""
    claim: str = ""
    """Of the reader that uses the name, of all servers: different for each. Only of a shared engine."""


class Wanted(Protocol):
    """Which events a reader wants, as far as an engine may use that to look at fewer. It may find others too."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """The topics themselves, if the reader named all of them."""

    @property
    def all_topics(self) -> bool:
        """Whether every topic is wanted."""

    @property
    def needle(self) -> bytes | None:
        """Bytes that occur in the JSON of each event that is wanted."""

    def wants_topic(self, name: str) -> bool:
        """Whether events of this topic may be wanted. The engine leaves out those of other topics."""


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
    def shared(self) -> bool:
        """Whether other servers may store here too. What they have stored is known after ``look`` and ``count``."""

    @property
    def stored_total(self) -> int:
        """Events that are stored, when they were last counted."""

    @property
    def topics_total(self) -> int:
        """Topics that have events, likewise."""

    async def count(self) -> None:
        """Find out what other servers have stored: how much. Raises StorageUnreadable."""

    async def look(self) -> None:
        """Find out what other servers have stored: move ``head``. Raises StorageUnreadable."""

    async def news(self) -> None:
        """Return when another server, or this one, may have stored something: soon after, now and then too early."""

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

    @property
    def head(self) -> Position:
        """The position behind the newest event that is stored."""

    @property
    def store_id(self) -> str:
        """A random name, made with the store: positions are of one store only."""

    def parse_position(self, text: str) -> Position | None:
        """A position that a client sends back; None if it is none.

        The seq of an event is one too: behind the event in its own lane, and at the beginning of all others.
        """

    def advance(self, position: Position, seqs: Sequence[int]) -> Position:
        """The position of a reader who was at ``position`` and had these next, in the order of commits or reading."""

    def retreat(self, position: Position, seqs: Sequence[int]) -> Position:
        """The position of a reader who was at ``position`` and had these next, backwards: up to before the last."""

    def distance(self, earlier: Position, later: Position) -> int:
        """About how many events ``later`` has that ``earlier`` has not: 0 if it has none, in any lane."""

    def earlier(self, one: Position, other: Position) -> Position:
        """The position behind what both have; one of the two themselves, if that is it."""

    def later(self, one: Position, other: Position) -> Position:
        """The position behind what either has, likewise."""

    async def read(
        self, wanted: Wanted, after: Position, until: Position, background: bool = False, slices: int = 1
    ) -> Slice:
        """The next events past ``after`` and up to ``until``, oldest first: as many as ``slices`` usual slices have.

        At its end the slice's position is ``until``. What is read in the background never holds up others. Raises
        StorageUnreadable.
        """

    async def read_back(self, wanted: Wanted, before: Position) -> Slice:
        """The events up to ``before``, newest first: the stretches fall. At the very end the position is 0."""

    async def seek(self, received_at: int) -> Position:
        """The position before the first event that was received at this time or later. Raises StorageUnreadable."""

    async def cursors(self) -> list[Cursor]:
        """The cursors that are stored. Raises StorageUnreadable."""

    async def save_cursors(self, changed: Sequence[Cursor], gone: Sequence[str]) -> Collection[str]:
        """Store and remove cursors durably. Raises StorageFull, StorageBusy or StorageFailed.

        A shared engine does not move a cursor that has another claim by now, or is gone: it returns those names.
        """

    async def claim_cursor(self, cursor: Cursor, seen: str | None) -> Cursor | None:
        """Make this cursor, or give the one that is there its claim and interest; return it as it is now.

        None if the interest of the one that is there is neither ``seen`` nor this. Raises as ``save_cursors``. Only of
        a shared engine.
        """

    async def topics(self, limit: int, after: str) -> list[Topic]:
        """The topics whose name comes after ``after`` (in order of code points). Raises StorageUnreadable."""

    def gauges(self) -> Iterable[Metric]:
        """The engine's own numbers, for ``STATS``."""

    def troubles(self) -> Mapping[str, str | None]:
        """What the engine checks of itself, for ``HEALTH``: what is wrong with each, or None."""

    async def close(self) -> None:
        """Give up the store; another process may open it then."""


AnyEngine = Engine[Any]
"""An engine, whatever its batches are: only the engine itself looks into them."""
