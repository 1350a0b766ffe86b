"""Which events a command reads: what ``tail`` and ``export`` have in common."""

from __future__ import annotations

import argparse
from typing import Final

from aggregator.cli.parser import Commands, Parser, age_or_time
from aggregator.cli.target import add_target

_EPILOG: Final = """\
A PATTERN is a topic, or has * for any characters, ? for one, [ab] for one of a set. Without any: all topics.
A T is a date and time, an age such as 10m (s, m, h, d), or NOW; it is compared with when an event was stored.
"""


def add_reader(commands: Commands, name: str, what: str, epilog: str, until: str | None) -> Parser:
    """Add a command that reads; ``until`` is the default end."""
    reader = commands.add_parser(
        name, help=what, epilog=_EPILOG + epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("patterns", nargs="*", metavar="PATTERN", help="topics (*)")
    add_target(reader)
    reader.add_argument("--source", help="only events with this source")
    reader.add_argument("--contains", metavar="TEXT", help="only events with this text anywhere in their JSON")
    reader.add_argument(
        "--until", type=age_or_time, default=until, metavar="T",
        help=f"only events stored before T ({until or 'no end'})",
    )  # fmt: skip
    return reader
