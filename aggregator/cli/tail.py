"""``aggregator tail``: the newest events, and later events as they come."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Final

from aggregator.cli.parser import Commands, age_or_time, integer, position, seconds
from aggregator.cli.selection import add_reader
from aggregator.cli.target import server_of
from aggregator.client.read.show import FORMATS
from aggregator.client.read.tail import TailOptions, tail

MAX_NEWEST: Final = 1_000_000
"""Most events of ``-n``. They are held in memory, because they are read backwards."""

DEFAULT_NEWEST: Final = 10

_EPILOG: Final = """\
With --follow it runs for ever, reconnects, and misses nothing; Ctrl-C ends it with exit code 0."""


def add_command(commands: Commands) -> None:
    """Add ``tail`` to the commands."""
    tail = add_reader(
        commands, "tail", "show the newest events, and with --follow later events as they come", _EPILOG, None
    )
    tail.set_defaults(run=_run, parser=tail)
    tail.add_argument("--follow", "-f", action="store_true", help="keep showing events as they come")
    tail.add_argument("--format", choices=FORMATS, help="text on a terminal, else json; event: byte for byte as sent")
    tail.add_argument(
        "--give-up-after", type=seconds, metavar="SECONDS",
        help="give up after this long without the server (30; with --follow never)",
    )  # fmt: skip

    start = tail.add_argument_group("where to begin").add_mutually_exclusive_group()
    start.add_argument(
        "-n", type=_newest, metavar="N", dest="newest", help=f"with the newest N events ({DEFAULT_NEWEST})"
    )
    start.add_argument("--since", type=age_or_time, metavar="T", help="with the events stored since T")
    start.add_argument("--after", type=position, metavar="SEQ", help="after this position; 0: with the oldest event")

    place = tail.add_argument_group("resuming where the last run ended").add_mutually_exclusive_group()
    place.add_argument("--cursor-file", type=Path, metavar="FILE", help="the position is kept in this file")
    place.add_argument("--name", help="the position is kept by the server under this name")


def _newest(text: str) -> int:
    return integer(text, 0, MAX_NEWEST)


def _run(options: argparse.Namespace) -> int:
    if options.follow and options.until is not None:
        options.parser.error("--follow has no end: leave out --until")
    if options.name is not None and options.newest is not None:
        options.parser.error("--name resumes where the last run ended, or begins with --since or --after: leave out -n")
    server = server_of(options)
    return asyncio.run(
        tail(
            TailOptions(
                patterns=options.patterns or ["*"],
                server=server,
                newest=DEFAULT_NEWEST if options.newest is None else options.newest,
                since=options.since,
                after=options.after,
                until=options.until,
                follow=options.follow,
                format=options.format,
                source=options.source,
                contains=options.contains,
                name=options.name,
                cursor_file=options.cursor_file,
                give_up_after_s=options.give_up_after,
            )
        )
    )
