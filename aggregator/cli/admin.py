"""``aggregator admin``: one command to a server, and its answer."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shlex
import sys
from typing import Final

from aggregator.cli.parser import Commands, complain, put_out
from aggregator.cli.target import add_target, server_of
from aggregator.client import NotOurProtocol, ask
from aggregator.client.terminal import printable

ASK_TIMEOUT_S: Final = 10.0
"""How long `admin` waits for its answer, which a healthy server gives within 50 ms."""

_UNHEALTHY: Final = (b'{"status":"ok","health":"degraded"', b'{"status":"ok","health":"failed"')
_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|\{\s*\}|\[\s*\]|[{}\[\],:]|[^\s"{}\[\],:]+')


def add_command(commands: Commands) -> None:
    """Add ``admin`` to the commands."""
    admin = commands.add_parser(
        "admin",
        help="send an admin command and print the reply; HELP lists them",
        usage="aggregator admin [-h] [--to SERVER] COMMAND [ARGUMENT ...]",
    )
    admin.set_defaults(run=_run, parser=admin)
    add_target(admin)
    admin.add_argument(  # one argument for all words, or argparse would take a "--" for its own
        "command",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="such as STATS, HEALTH, EVENTS or HELP, which lists them; all that follows belongs to it",
    )


def _run(options: argparse.Namespace) -> int:
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    command = shlex.join(words)
    if not words or "\n" in command:
        options.parser.error("expected one command on one line")
    server = server_of(options)
    with asyncio.Runner() as runner:
        try:
            reply = runner.run(
                ask(server.host, server.port, command, ASK_TIMEOUT_S, ssl=server.ssl, token=server.token)
            )
        except (OSError, NotOurProtocol) as error:
            complain(f"{server.shown}: {error}")
            os._exit(1)  # the runner would wait for a name server that does not answer
        except KeyboardInterrupt:
            os._exit(130)
    if not put_out((_for_terminal(reply) if sys.stdout.isatty() else reply) + b"\n"):
        return 1
    well = reply.startswith(b'{"status":"ok"') and not reply.startswith(_UNHEALTHY)
    return 0 if well else 1


def _for_terminal(reply: bytes) -> bytes:
    """The same JSON for people to read, in characters that the terminal has."""
    text = _indented(printable(reply.decode(errors="backslashreplace")))
    try:
        return text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return "".join(one if one.isascii() else json.dumps(one)[1:-1] for one in text).encode()


def _indented(text: str) -> str:
    """The same JSON over many lines. Decoding and encoding it again would change its numbers."""
    pieces: list[str] = []
    depth = 0
    for part in _JSON_TOKEN.findall(text):
        if part in "]}":
            depth -= 1
            pieces.append("\n" + "  " * depth)
        pieces.append(": " if part == ":" else part)
        if part in "[{":
            depth += 1
        if part in "[{,":
            pieces.append("\n" + "  " * depth)
    return "".join(pieces)
