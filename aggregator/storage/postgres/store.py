"""PostgreSQL as an Engine: many servers share one database, and keep nothing themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from typing import Final, Self, TypeVar

import psycopg

from aggregator.metric import Kind, Metric
from aggregator.storage.engine import (
    Commit,
    Cursor,
    Position,
    Slice,
    StorageBusy,
    StorageError,
    StorageFailed,
    StorageUnusable,
    StoredEvent,
    Topic,
    Wanted,
)
from aggregator.storage.postgres import schema
from aggregator.storage.postgres.batch import Batch, Part
from aggregator.storage.postgres.census import Census
from aggregator.storage.postgres.cursors import CursorTable
from aggregator.storage.postgres.errors import LINK_ERRORS, storage_error
from aggregator.storage.postgres.lane import Lane, Stored
from aggregator.storage.postgres.link import RETRY_S, Connection, Link, NotConnected
from aggregator.storage.postgres.news import News, listen
from aggregator.storage.postgres.positions import Positions
from aggregator.storage.postgres.query import Query
from aggregator.storage.postgres.reader import Reader
from aggregator.storage.postgres.target import Target
from aggregator.storage.postgres.topics import Topic as KnownTopic
from aggregator.storage.postgres.topics import Topics

log = logging.getLogger("aggregator")

T = TypeVar("T")
Prepare = Callable[[Connection], Awaitable[None]]

MIN_VERSION: Final = 150_000
"""PostgreSQL 15: older versions were not tried."""

_PRIMARY: Final = """
SELECT system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8) FROM pg_control_system()
"""

# Compiling a plan takes longer than running it does, for every statement of ours.
_ON_CONNECT: Final = "SELECT name, set_config('jit', 'off', false) FROM aggregator.store"

# A role without pg_monitor sees that there are standbys, but not which of them are synchronous.
_STANDBYS: Final = """
SELECT count(*) FILTER (WHERE coalesce(sync_state IN ('sync', 'quorum'), true)) FROM pg_stat_replication
"""


class Store:
    """One database. Made by ``open``; must be closed."""

    name = "postgresql"
    appends_at_once = 2
    """One batch is prepared, or waits for its lanes, while another is being stored."""
    shared = True
    upkeep_due = False
    upkeep_left = False

    def __init__(self, target: Target, found: schema.Store, version: str, standbys: int) -> None:
        self.location = target.location
        self.version = version
        self.store_id = found.name
        self._target = target
        self._standbys = standbys
        self._positions = Positions(found.stride, 0)
        self._links: list[Link] = []
        self._primary: tuple[int, str] | None = None
        self._query = Query(self._new_link)
        self._topics = Topics(self._query, 0)
        self._reader = Reader(self._query, self._topics, self._positions)
        self._census = Census(self._query, self._positions)
        self._cursors = CursorTable(self._query, self._positions)
        self._news = News(self._query, lambda: self._new_link(False, listen))
        self._lanes: list[Lane] = []
        self._heads: list[int] = []
        self._order = asyncio.Lock()  # keeps the order in which batches come to their lanes
        self._standbys_seen: int | None = None
        self._unreachable: str | None = None
        self._held_up: str | None = None  # why a batch cannot be sent
        self._use_lanes(found.lanes)

    @classmethod
    async def open(cls, url: str, lanes: int | None, standbys: int) -> Self:
        """Open or create the store. Raises StorageUnusable."""
        target = Target(url)
        link = Link(target, lambda connection: connection.set_autocommit(True))
        try:
            found, version = await link.run(lambda connection: _prepare(connection, lanes, standbys))
        except LINK_ERRORS as error:
            raise StorageUnusable(f"cannot use {target.location}: {storage_error(error)}") from error
        finally:
            await link.close()
        store = cls(target, found, version, standbys)
        try:
            await store.look()
            await store.count()
            await store._see_standbys()
        except BaseException as error:
            await store.close()
            if isinstance(error, StorageError):
                raise StorageUnusable(f"cannot use {target.location}: {error}") from error
            raise
        return store

    def _new_link(self, proves: bool, prepare: Prepare | None = None) -> Link:
        async def on_connect(connection: Connection) -> None:
            await self._check(connection, link)
            if proves:
                await self._prove(connection)
            if prepare:
                await prepare(connection)

        link = Link(self._target, on_connect)
        self._links.append(link)
        return link

    async def _check(self, connection: Connection, link: Link) -> None:
        """Check that a new connection leads to this store, on the newest primary that is known.

        A primary that is cut off from its standbys goes on answering reads. So the link that finds a newer primary
        marks all other links as outdated, and no link returns to an older primary.
        """
        row = await (await connection.execute(_ON_CONNECT)).fetchone()
        if row is None or row[0] != self.store_id:
            raise StorageFailed("the database holds another store now")
        found, known = await _primary(connection), self._primary
        if found and known and found[0] == known[0] and found[1] < known[1]:
            raise NotConnected("the server is a former primary")
        if found and found != known:
            self._primary = found
            for other in self._links if known else ():
                other.outdated = True
        link.outdated = False
        self._topics.forget()  # another primary's topics may be missing: an administrator may have ended replication

    async def _prove(self, connection: Connection) -> None:
        """Commit, which proves that everything that the connection sees has been replicated."""
        for lane in range(len(self._lanes)):
            await schema.hold(connection, lane, self._standbys)

    def _use_lanes(self, count: int) -> None:
        for number in range(len(self._lanes), count):
            self._lanes.append(Lane(number, self._new_link(False), self._topics, self._standbys))
            self._heads.append(0)
        self._positions.lanes = self._topics.lanes = len(self._lanes)

    async def close(self) -> None:
        """As ``Engine.close``."""
        await asyncio.gather(self._news.close(), self._query.close(), *(lane.close() for lane in self._lanes))

    # --- storing

    def new_batch(self) -> Batch:
        """An empty batch."""
        return Batch()

    async def prepare(self, batch: Batch) -> None:
        """Cut a full batch by lane, and make its arrays. If its topics cannot be found now, ``append`` does this."""
        generation = self._topics.generation
        try:
            batch.cut(await self._topics.made(list(dict.fromkeys(batch.events.topics))), generation)
        except StorageError:
            return

    async def append(self, batch: Batch) -> Commit:
        """As ``Engine.append``, but it waits until the outcome of every part is known, and raises no StorageBusy."""
        async with self._order:
            generation = self._topics.generation
            parts = batch.parts
            if parts is None:
                parts = batch.cut(await self._topics_of(batch.events.topics), generation)
            if max(part.lane for part in parts) >= len(self._lanes):
                await self._until_done(self._look_at_lanes)
            appending = [asyncio.create_task(self._append_part(batch, part)) for part in parts]
        results = await asyncio.gather(*appending, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        for kind in (StorageFailed, BaseException):
            for failure in failures:
                if isinstance(failure, kind):
                    raise failure
        stored = [result for result in results if isinstance(result, Stored)]
        for part in parts:
            self._heads[part.lane] = max(self._heads[part.lane], self._lanes[part.lane].last)
        self._news.tell()
        return self._commit(len(batch), parts, stored)

    async def _append_part(self, batch: Batch, part: Part) -> Stored:
        async def cut_again() -> None:
            batch.cut_again(part, await self._topics_of(part.topics))

        return await self._lanes[part.lane].append(part, cut_again)

    async def _topics_of(self, all_names: Iterable[str]) -> dict[str, KnownTopic]:
        """The topics of these names; missing topics are created."""
        names = list(dict.fromkeys(all_names))
        if (known := self._topics.known(names)) is not None:
            return known
        return await self._until_done(lambda: self._topics.made(names))

    async def _until_done(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do what a batch needs before it is sent; repeat it until it succeeds. Raises StorageFull or StorageFailed."""
        while True:
            try:
                done = await work()
            except StorageBusy as error:
                if self._held_up != str(error):
                    log.error("events are not being stored: %s", error)
                self._held_up = str(error)
                await asyncio.sleep(RETRY_S)
            else:
                self._held_up = None
                return done

    def _commit(self, count: int, parts: Sequence[Part], stored: Sequence[Stored]) -> Commit:
        seqs = [0] * count
        duplicates: dict[int, int] = {}
        stride = self._positions.stride
        for part, result in zip(parts, stored, strict=True):
            for place, number in zip(part.places, result.numbers, strict=True):
                seqs[place] = number * stride + part.lane
            for place in result.duplicates:
                duplicates[part.places[place]] = seqs[part.places[place]]
            for place, first in part.twins.items():
                seqs[place] = duplicates[place] = seqs[first]
        return Commit(seqs, duplicates, max((result.received_at for result in stored), default=0))

    async def probe(self) -> None:
        """As ``Engine.probe``."""
        await asyncio.gather(*(lane.probe() for lane in self._lanes))

    async def verify(self) -> None:
        """As ``Engine.verify``. Raises StorageFailed if the database is another store."""
        try:
            await self._look_at_lanes()  # which also shows each second whether the database is reachable
            await self._see_standbys()
            await self._census.count()
        except StorageFailed:
            raise
        except StorageError as error:
            self._unreachable = str(error)
        else:
            self._unreachable = None

    async def _look_at_lanes(self) -> None:
        """Begin to use lanes that were added."""
        ((lanes,),) = await self._query.write(schema.LANES)
        self._use_lanes(lanes)

    async def _see_standbys(self) -> None:
        if self._standbys:
            ((self._standbys_seen,),) = await self._query.write(_STANDBYS)

    async def upkeep(self, quiet: bool) -> bool:
        """As ``Engine.upkeep``: the database maintains itself."""
        return False

    # --- what others have stored

    async def news(self) -> None:
        """As ``Engine.news``."""
        await self._news.wait()

    async def look(self) -> None:
        """As ``Engine.look``. Lanes that were added are used from now on."""
        lanes, heads = await self._reader.heads()
        if lanes > len(self._lanes):
            self._use_lanes(lanes)
            _, heads = await self._reader.heads()
        for lane, number in enumerate(heads):
            self._heads[lane] = max(self._heads[lane], number)

    async def count(self) -> None:
        """As ``Engine.count``."""
        await self._census.look()

    @property
    def stored_total(self) -> int:
        """As ``Engine.stored_total``."""
        return self._census.stored_total

    @property
    def topics_total(self) -> int:
        """As ``Engine.topics_total``."""
        return self._census.topics_total

    # --- reading

    @property
    def head(self) -> Position:
        """As ``Engine.head``, as far as this server knows; ``look`` updates it."""
        return self._positions.shown(self._heads)

    def parse_position(self, text: str) -> Position | None:
        """As ``Engine.parse_position``."""
        return self._positions.parse(text)

    def advance(self, position: Position, seqs: Sequence[int]) -> Position:
        """As ``Engine.advance``."""
        return self._positions.advance(position, seqs)

    def retreat(self, position: Position, seqs: Sequence[int]) -> Position:
        """As ``Engine.retreat``."""
        return self._positions.retreat(position, seqs)

    def distance(self, earlier: Position, later: Position) -> int:
        """As ``Engine.distance``."""
        return self._positions.distance(earlier, later)

    def earlier(self, one: Position, other: Position) -> Position:
        """As ``Engine.earlier``."""
        return self._positions.earlier(one, other)

    def later(self, one: Position, other: Position) -> Position:
        """As ``Engine.later``."""
        return self._positions.later(one, other)

    async def _on_one_primary(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read again if a connection was made during the read: the topics may be those of the former primary."""
        while True:
            generation = self._topics.generation
            found = await read()
            if generation == self._topics.generation:
                return found

    async def event(self, topic: str, event_id: str) -> StoredEvent | None:
        """As ``Engine.event``."""
        return await self._on_one_primary(lambda: self._reader.event(topic, event_id))

    async def read(
        self, wanted: Wanted, after: Position, until: Position, background: bool = False, slices: int = 1
    ) -> Slice:
        """As ``Engine.read``."""
        return await self._on_one_primary(lambda: self._reader.read(wanted, after, until, background, slices))

    async def read_back(self, wanted: Wanted, before: Position) -> Slice:
        """As ``Engine.read_back``."""
        return await self._on_one_primary(lambda: self._reader.read_back(wanted, before))

    async def seek(self, received_at: int) -> Position:
        """As ``Engine.seek``."""
        return await self._reader.seek(received_at)

    async def topics(self, limit: int, after: str) -> list[Topic]:
        """As ``Engine.topics``."""
        return await self._census.topics(limit, after)

    # --- cursors

    async def cursors(self) -> list[Cursor]:
        """As ``Engine.cursors``."""
        return await self._cursors.all()

    async def claim_cursor(self, cursor: Cursor, seen: str | None) -> Cursor | None:
        """As ``Engine.claim_cursor``."""
        return await self._cursors.claim(cursor, seen)

    async def save_cursors(self, changed: Sequence[Cursor], gone: Sequence[str]) -> Collection[str]:
        """As ``Engine.save_cursors``."""
        return await self._cursors.save(changed, gone)

    # --- what it says of itself

    def gauges(self) -> Iterator[Metric]:
        """As ``Engine.gauges``."""
        yield Metric("stored_total", self.stored_total, "events in the database")
        yield Metric("topics", self.topics_total, "topics in the database")
        yield Metric("lanes", len(self._lanes), "lanes of the database")
        blocked = sum(lane.blocked is not None for lane in self._lanes)
        yield Metric("lanes_blocked", blocked, "lanes in which nothing can be stored now", in_health=True)
        unknown = sum(lane.unknown_appends for lane in self._lanes)
        yield Metric(
            "unknown_appends", unknown, "batches that were sent again, because their outcome was unknown", Kind.COUNTER
        )
        if self._standbys:
            yield Metric("standbys", self._standbys_seen, "standbys that are connected", in_health=True)

    def troubles(self) -> dict[str, str | None]:
        """As ``Engine.troubles``."""
        blocked = [f"lane {lane.number}: {lane.blocked}" for lane in self._lanes if lane.blocked is not None]
        missing = None
        if self._standbys_seen is not None and self._standbys_seen < self._standbys:
            missing = f"{self._standbys_seen} of {self._standbys} standbys are connected"
        return {
            "lanes": "; ".join(blocked) or self._held_up,
            "database": self._unreachable,
            "standbys": missing,
        }


async def _prepare(connection: Connection, lanes: int | None, standbys: int) -> tuple[schema.Store, str]:
    """Create or check the tables, and commit once, which fails if commits are not durable here."""
    version = connection.info.server_version
    if version < MIN_VERSION:
        raise StorageUnusable(f"PostgreSQL {version // 10_000} is too old: 15 or newer is needed")
    if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
        raise StorageUnusable(
            f"the database has the encoding {encoding}: UTF8 is needed, because topics may be any text"
        )
    found = await schema.prepare(connection, lanes)
    await schema.hold(connection, 0, standbys)
    return found, connection.info.parameter_status("server_version") or str(version)


async def _primary(connection: Connection) -> tuple[int, str] | None:
    """Which primary this is: its cluster, and its timeline, which rises with each promotion. None if it does not tell.

    Not by ``pg_control_checkpoint``, which shows the old timeline until the new primary has made a checkpoint.
    """
    try:
        cursor = await connection.execute(_PRIMARY)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported):
        return None
    return await cursor.fetchone()
