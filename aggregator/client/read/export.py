"""``aggregator export``: all events of a time, to a file or a pipe; exit code 0 means that it is complete."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aggregator.client.connect import Server
from aggregator.client.delivered import DeliveredEvent
from aggregator.client.read.output import Output
from aggregator.client.read.reading import GIVE_UP_S, Reading
from aggregator.client.read.show import COLUMNS, Csv, Format, format_of
from aggregator.client.reply import reason
from aggregator.client.screen import Screen
from aggregator.client.subscriber import Subscriber

BEGINNING: Final = "1970-01-01T00:00:00Z"
"""Before the oldest stored event. A position would not do: the server answers it with a gap if events were removed."""

LONG_S: Final = 1.0
"""An export that takes longer than this shows a bar on a terminal."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The options of `aggregator export`; its --help says what each means."""

    patterns: list[str]
    server: Server
    since: str = BEGINNING
    until: str = "NOW"
    format: str = "event"
    columns: Sequence[str] = COLUMNS
    source: str | None = None
    contains: str | None = None
    output: Path | None = None
    quiet: bool = False
    give_up_after_s: float | None = None


async def export(options: ExportOptions) -> int:
    """Write all events; return the exit code."""
    screen = Screen()
    try:
        output = Output(options.output)
    except OSError as error:
        screen.say(f"aggregator: {options.output or 'standard output'}: {reason(error)}")
        screen.close()
        return 1
    run = _Run(options, screen, output)
    code = await Reading(options.server.shown, screen, output, follow=False).run(run.run())
    run.close()
    output.close()
    screen.close()
    return code or int(screen.failed)


class _Run:
    """One run."""

    def __init__(self, options: ExportOptions, screen: Screen, output: Output) -> None:
        self._options = options
        self._screen = screen
        self._output = output
        self._format: Format
        if options.format == "csv":
            self._format = Csv(options.columns)
        else:
            self._format = format_of(options.format, on_terminal=output.is_terminal, coloured=False)
        self._started_at = time.monotonic()
        self._count = 0
        self._last: DeliveredEvent | None = None
        self._bar: Any = None

    async def run(self) -> None:
        """Write everything up to the end. Raises the error that comes before the end."""
        options = self._options
        subscriber = Subscriber(
            options.server.host,
            options.server.port,
            options.patterns,
            ssl=options.server.ssl,
            token=options.server.token,
            since=options.since,
            until=options.until,
            source=options.source,
            contains=options.contains,
            on_trouble=self._complain,
            give_up_after_s=GIVE_UP_S if options.give_up_after_s is None else options.give_up_after_s,
        )
        await self._output.write(self._format(()))
        async with subscriber as events:
            self._show_bar(events)
            async for batch in events.batches():
                await self._output.write(self._format(batch))
                self._count += len(batch)
                self._last = batch[-1]
                self._move_bar(batch[-1].seq)
        await self._output.complete()
        self.close()
        self._say_summary()

    def _say_summary(self) -> None:
        if not self._options.quiet:
            elapsed_s = time.monotonic() - self._started_at
            last = f", last seq {self._last.seq}" if self._last else ""
            rate = self._count / elapsed_s
            self._screen.say(f"exported {self._count}{last} in {elapsed_s:.1f} s ({rate:,.0f}/s)")

    # --- the bar

    def _show_bar(self, events: Subscriber) -> None:
        """Show a bar over the positions from the first to the last, if they are numbers."""
        first, last = events.position, events.head
        if self._options.quiet or not self._screen.is_terminal or self._output.is_terminal:
            return
        if isinstance(first, int) and isinstance(last, int):
            with contextlib.suppress(ImportError):  # the extra "cli"
                from tqdm import tqdm

                self._bar = tqdm(
                    initial=first, total=last, unit=" events", unit_scale=True, leave=False, dynamic_ncols=True,
                    file=self._screen, delay=LONG_S,
                )  # fmt: skip

    def _move_bar(self, seq: int) -> None:
        if self._bar is not None:  # a bar without a total has no truth value
            self._bar.update(seq - self._bar.n)

    def _complain(self, message: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        self._screen.say(f"aggregator: {message}")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
