"""What brings commits to the feed.

If the engine belongs to one server, its commits are published as they are made. An engine that servers share is
followed instead: the follower finds out what all servers have stored, reads it, and publishes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from aggregator.event import Events
from aggregator.server.feed import MAX_SLICES, Feed
from aggregator.storage.engine import AnyEngine, Commit, Position, StorageUnreadable
from aggregator.wire.interest import interest_in

log = logging.getLogger("aggregator")

RETRY_S: Final = 1.0
"""How long the follower pauses after a defect of ours."""

EVERYTHING: Final = interest_in(("*",))
NOTHING: Final = Commit((), {}, 0)


class Follower:
    """Keeps one server's feed at the head of its engine."""

    def __init__(self, engine: AnyEngine, feed: Feed) -> None:
        self._engine = engine
        self._feed = feed
        self._turn = asyncio.Lock()  # one look at a time
        self._looking: asyncio.Task[None] | None = None  # a reference: the event loop itself keeps no task alive
        self._next_look: asyncio.Task[None] | None = None  # a look that has not begun
        self._following: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start following the engine, if servers share it. Call it once, in the event loop."""
        if self._engine.shared:
            self._following = asyncio.create_task(self._follow())

    def stop(self) -> None:
        """Stop following."""
        if self._following:
            self._following.cancel()

    def committed(self, parts: Sequence[Events], commit: Commit, after: Position) -> None:
        """Publish a commit of this server: the events of ``parts``, up to the position ``after``.

        In a shared store the look that finds it publishes it, among the commits of the other servers.
        """
        if not self._engine.shared:
            self._feed.publish(parts, commit, after)

    async def refresh(self) -> None:
        """Move the feed's head past everything that any server has stored by now. Raises StorageUnreadable.

        A look that has begun may miss later commits. So all callers that come during a look share the next look, and
        its error: while the database is unreachable, each look takes some time to find that out.
        """
        if self._engine.shared:
            self._next_look = self._next_look or asyncio.create_task(self._look())
            await asyncio.shield(self._next_look)  # a cancelled caller must not cancel it for the others

    async def _look(self) -> None:
        async with self._turn:
            self._looking, self._next_look = self._next_look, None
            await self._engine.look()
            await self._publish_stored(self._engine.head)

    async def _follow(self) -> None:
        while True:
            await self._engine.news()
            try:
                await self.refresh()
            except StorageUnreadable as error:
                log.debug("cannot follow the store: %s", error)
            except Exception:  # a defect of ours
                log.exception("the store could not be followed")
                await asyncio.sleep(RETRY_S)

    async def _publish_stored(self, until: Position) -> None:
        """Publish what is stored up to ``until``. Nothing is read if nobody needs the events."""
        feed = self._feed
        while feed.head != until and feed.needs_events:
            try:
                found = await self._engine.read(EVERYTHING, feed.head, until, background=True, slices=MAX_SLICES)
            except StorageUnreadable:
                found = None
            if found is None or found.gap is not None:
                feed.all_fall_behind()  # each subscription finds out by its own reads what this means to it
                break
            for stretch in found.stretches:
                events = Events(list(stretch.topics), json=list(stretch.json), size_bytes=sum(map(len, stretch.json)))
                after = self._engine.advance(feed.head, stretch.seqs)
                feed.publish([events], Commit(stretch.seqs, {}, stretch.received_at), after)
            if feed.head != found.position:
                feed.publish([], NOTHING, found.position)
        if feed.head != until:
            feed.publish([], NOTHING, until)
