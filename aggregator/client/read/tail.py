"""``aggregator tail``: the newest events, or those since a time or position, and with ``--follow`` all later events."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aggregator.client.connect import Server
from aggregator.client.outage import Outage
from aggregator.client.query import Position
from aggregator.client.read import cursor_file
from aggregator.client.read.cursor_file import Cursor
from aggregator.client.read.newest import Pages
from aggregator.client.read.output import Output
from aggregator.client.read.reading import GIVE_UP_S, Reading
from aggregator.client.read.show import format_of
from aggregator.client.reply import reason
from aggregator.client.screen import Screen
from aggregator.client.subscriber import Subscriber

CURSOR_S: Final = 1.0
"""How often the cursor file is replaced, if the position has moved."""


@dataclass(frozen=True, slots=True)
class TailOptions:
    """The options of `aggregator tail`; its --help says what each means."""

    patterns: list[str]
    server: Server
    newest: int = 10
    since: str | None = None
    after: Position | None = None
    until: str | None = None
    follow: bool = False
    format: str | None = None
    source: str | None = None
    contains: str | None = None
    name: str | None = None
    cursor_file: Path | None = None
    give_up_after_s: float | None = None


async def tail(options: TailOptions) -> int:
    """Show events; return the exit code."""
    screen = Screen()
    try:
        output = Output()
    except OSError as error:
        screen.say(f"aggregator: standard output: {reason(error)}")
        screen.close()
        return 1
    run = _Run(options, screen, output)
    code = await Reading(options.server.shown, screen, output, follow=options.follow).run(run.run())
    screen.close()
    return code or int(screen.failed)


class _Run:
    """One run."""

    def __init__(self, options: TailOptions, screen: Screen, output: Output) -> None:
        self._options = options
        self._screen = screen
        self._output = output
        name = options.format or ("text" if output.is_terminal else "json")
        coloured = output.is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._format = format_of(name, on_terminal=output.is_terminal, coloured=coloured)
        self._address = options.server.shown
        self._give_up_after_s = options.give_up_after_s
        if self._give_up_after_s is None and not options.follow:
            self._give_up_after_s = GIVE_UP_S
        self._saved: Cursor | None = None

    async def run(self) -> None:
        """Show the events that are asked for. Raises the error that ends the run."""
        options = self._options
        after, since, store = options.after, options.since, None
        if options.cursor_file and (cursor := cursor_file.load(options.cursor_file)):
            store, after, since = cursor.store, cursor.seq, None
            self._saved = cursor
        elif options.name is None and after is None and since is None:
            after = await self._show_newest()
            if not options.follow and not options.cursor_file:
                return
        await self._show_all(after, since, store)

    async def _show_newest(self) -> Position | None:
        """Return the position to go on from; None if that is now."""
        options = self._options
        wanted = {"UNTIL": options.until, "SOURCE": options.source, "CONTAINS": options.contains}
        outage = Outage(self._address, self._complain, self._give_up_after_s)
        pages = Pages(options.server, options.patterns, wanted, outage)
        newest = await pages.newest(options.newest)
        await self._output.write(self._format(newest.events))
        if newest.is_cut:
            self._complain(f"{self._address}: the search was cut short, older events are not shown: use --since")
        return newest.head

    async def _show_all(self, after: Position | None, since: str | None, store: str | None) -> None:
        options = self._options
        subscriber = Subscriber(
            options.server.host,
            options.server.port,
            options.patterns,
            ssl=options.server.ssl,
            token=options.server.token,
            after=after,
            since=since,
            until=None if options.follow else options.until or "NOW",
            source=options.source,
            contains=options.contains,
            name=options.name,
            store=store,
            on_gap=(lambda gap: self._complain(f"{self._address}: {gap}")) if options.follow else None,
            on_trouble=self._complain,
            give_up_after_s=self._give_up_after_s,
        )
        async with subscriber as events:
            keeping = asyncio.create_task(self._keep_cursor(events))
            showing = asyncio.create_task(self._show(events))
            try:
                await asyncio.wait([keeping, showing], return_when=asyncio.FIRST_COMPLETED)
            finally:
                keeping.cancel()
                showing.cancel()
                await asyncio.wait([keeping, showing])
                await self._save_cursor(events)
            for task in (keeping, showing):
                if not task.cancelled():
                    task.result()

    async def _show(self, events: Subscriber) -> None:
        async for batch in events.batches():
            await self._output.write(self._format(batch))
            events.done(batch[-1])

    async def _keep_cursor(self, events: Subscriber) -> None:
        while True:
            await asyncio.sleep(CURSOR_S)
            await self._save_cursor(events)

    async def _save_cursor(self, events: Subscriber) -> None:
        """Save the position; the events up to it have been written before."""
        path, store, position = self._options.cursor_file, events.store, events.position
        if path and store is not None and position is not None and self._saved != (store, position):
            self._saved = Cursor(store, position)
            await asyncio.to_thread(cursor_file.save, path, self._saved)

    def _complain(self, message: str) -> None:
        self._screen.say(f"aggregator: {message}")
