"""``aggregator export``: all events of a time; the exit code says whether they are complete."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Final

from aggregator.cli.parser import Commands, age_or_time, seconds
from aggregator.cli.selection import add_reader
from aggregator.cli.target import server_of
from aggregator.client.read.export import BEGINNING, ExportOptions, export
from aggregator.client.read.show import COLUMNS

_EPILOG: Final = """\
Exit code 0 means that the export is complete. `aggregator export | aggregator send --to HOST:PORT` copies the events;
running it again stores nothing twice."""


def add_command(commands: Commands) -> None:
    """Add ``export`` to the commands."""
    export = add_reader(commands, "export", "write all events to a file or a pipe", _EPILOG, "NOW")
    export.set_defaults(run=_run, parser=export)
    export.add_argument(
        "--since", type=age_or_time, default=BEGINNING, metavar="T", help="only events stored since T (no start)"
    )
    export.add_argument(
        "--format", choices=("event", "json", "csv"), default="event",
        help="event: byte for byte as sent; json: with seq and received_at (event)",
    )  # fmt: skip
    export.add_argument(
        "--columns", type=_columns, metavar="NAME,…",
        help=f"with csv: members, and paths into the payload such as payload.user.id ({','.join(COLUMNS)})",
    )  # fmt: skip
    export.add_argument(
        "--output", type=Path, metavar="FILE", help="file, which appears only when it is complete (standard output)"
    )
    export.add_argument("--quiet", action="store_true", help="nothing but errors on standard error")
    export.add_argument(
        "--give-up-after", type=seconds, metavar="SECONDS", help="give up after this long without the server (30)"
    )


def _columns(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if "" in names:
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {text!r}")
    return names


def _run(options: argparse.Namespace) -> int:
    if options.columns and options.format != "csv":
        options.parser.error("--columns needs --format csv")
    server = server_of(options)
    return asyncio.run(
        export(
            ExportOptions(
                patterns=options.patterns or ["*"],
                server=server,
                since=options.since,
                until=options.until,
                format=options.format,
                columns=options.columns or COLUMNS,
                source=options.source,
                contains=options.contains,
                output=options.output,
                quiet=options.quiet,
                give_up_after_s=options.give_up_after,
            )
        )
    )
