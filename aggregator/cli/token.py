"""``aggregator token``: a new token, and its stanza for the file of ``--identities``."""

from __future__ import annotations

import argparse
from typing import Final

from aggregator.access import token
from aggregator.access.file import name_fault
from aggregator.cli.parser import Commands, put_out

_STANZA: Final = """\
[[identity]]
name = "{name}"
token_sha256 = ["{digest}"]
publish = []  # topics, as in ["web.*", "audit"]
read = []
"""


def add_command(commands: Commands) -> None:
    """Add ``token`` to the commands."""
    command = commands.add_parser(
        "token", help="print a new token, and its stanza for the server's --identities",
        description="Print a new token on the first line and, after an empty line, its stanza for --identities.",
    )  # fmt: skip
    command.set_defaults(run=_run, parser=command)
    command.add_argument("name", type=_name, metavar="NAME", help="name of the identity that the token is for")


def _name(text: str) -> str:
    if fault := name_fault(text):
        raise argparse.ArgumentTypeError(fault)
    return text


def _run(options: argparse.Namespace) -> int:
    new = token.new()
    return 0 if put_out(f"{new}\n\n{_STANZA.format(name=options.name, digest=token.digest(new))}".encode()) else 1
