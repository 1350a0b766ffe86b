"""``aggregator send``: files or standard input to a server."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Final

from aggregator.cli.parser import Commands, seconds
from aggregator.cli.target import add_target, server_of
from aggregator.client.send import send
from aggregator.client.send.options import SendOptions

_EPILOG: Final = """\
Lines of text get the time of sending as their timestamp, unless --timestamp auto finds one at the start of the line.
Files compressed with gzip, bzip2 or xz are read as text. README.md says what makes a line the same line."""


def add_command(commands: Commands) -> None:
    """Add ``send`` to the commands."""
    sender = commands.add_parser(
        "send",
        help="send files or standard input, until every event is acked",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sender.set_defaults(run=_run, parser=sender)
    sender.add_argument(
        "files", nargs="*", metavar="FILE", help="files of events, one a line; - or none: standard input"
    )
    add_target(sender)
    sender.add_argument("--quiet", action="store_true", help="nothing but errors on standard error")
    sender.add_argument(
        "--give-up-after", type=seconds, metavar="SECONDS", help="give up after this long without an ack (never)"
    )
    sender.add_argument("--rejects", type=Path, metavar="FILE", help="append every rejected line to this file")

    files = sender.add_argument_group("files")
    files.add_argument("--follow", action="store_true", help="keep reading as the files grow, like tail -F")
    files.add_argument(
        "--state", type=Path, metavar="FILE", help="record in FILE how far each file is acked, and resume there"
    )
    files.add_argument("--text", action="store_true", help="treat all content as text: unpack nothing, refuse nothing")

    text = sender.add_argument_group("lines that are not events yet")
    text.add_argument("--topic", help="wrap each line of text into an event of this topic")
    text.add_argument("--source", help="the events' source (this host's name)")
    text.add_argument(
        "--timestamp", choices=("now", "auto"), default="now",
        help="now: the time of sending; auto: the ISO 8601 or syslog stamp at the start of a line, if it has one (now)",
    )  # fmt: skip
    text.add_argument(
        "--identity", choices=("file", "content"), default="file",
        help="file: a line is the same if it is in the same file; "
        "content: if everything up to it is the same, in any file (file)",
    )  # fmt: skip
    text.add_argument("--json", action="store_true", help="each line is a JSON object and becomes the payload as it is")
    for name, what in (("id", "event_id"), ("time", "timestamp"), ("topic", "topic")):
        text.add_argument(f"--{name}-field", metavar="NAME", help=f"with --json: the field that holds the {what}")


def _run(options: argparse.Namespace) -> int:
    fields = [options.id_field, options.time_field, options.topic_field]
    if not options.json and any(field is not None for field in fields):
        options.parser.error("--id-field, --time-field and --topic-field need --json")
    if options.json and options.topic is None and options.topic_field is None:
        options.parser.error("--json needs --topic or --topic-field")
    server = server_of(options)
    return asyncio.run(
        send(
            SendOptions(
                files=options.files,
                server=server,
                topic=options.topic,
                source=options.source,
                takes_stamps=options.timestamp == "auto",
                json=options.json,
                id_field=options.id_field,
                time_field=options.time_field,
                topic_field=options.topic_field,
                by_content=options.identity == "content",
                as_text=options.text,
                follow=options.follow,
                state=options.state,
                rejects=options.rejects,
                quiet=options.quiet,
                give_up_after_s=options.give_up_after,
            )
        )
    )
