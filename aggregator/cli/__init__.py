"""The command line: one module for each command, and ``parser`` for what they have in common.

Exit codes: 0 all went well; 1 it did not (the command has failed, or not every event was taken); 2 the command line or
the environment is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from aggregator import __version__, streams
from aggregator.cli import admin, export, send, serve, tail, token, unit
from aggregator.cli.parser import Parser, complain, settle

_COMMANDS = (serve, send, tail, export, admin, unit, token)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    streams.open_missing()  # before any file is opened
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "serve")
    parser = Parser(prog="aggregator", description="A log aggregator: newline-delimited JSON over TCP into SQLite.")
    parser.add_argument("--version", action="version", version=f"aggregator {__version__}")
    names = ",".join(module.__name__.rpartition(".")[2] for module in _COMMANDS)
    commands = parser.add_subparsers(title="commands", required=True, metavar=f"{{{names}}}")
    for module in _COMMANDS:
        module.add_command(commands)
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    options.remarks = settle(options)
    options.variables = set[str]().union(*(command.variables for command in commands.choices.values()))
    if run is not serve.run:  # the server logs them
        for remark in options.remarks:
            complain(remark)
    try:
        return run(options)
    except KeyboardInterrupt:
        return 130
