"""The command line: argv and ``AGGREGATOR_*`` environment into a Config; outcomes into exit codes.

Exit codes: 0 all went well; 1 it did not (what was asked for failed, or not every event was taken); 2 the command
line or the environment is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import uvloop

from aggregator import __version__
from aggregator.client import NotOurProtocol, ask
from aggregator.client.send import SendOptions, send
from aggregator.config import Config
from aggregator.server.listeners import CannotListen
from aggregator.server.server import CannotStart, serve
from aggregator.storage.engine import StorageUnusable

SWITCH_INTERVAL_S: Final = 0.0001
"""How long Python lets one thread run while another waits, instead of 5 ms: the database's thread asks for the
interpreter several times a batch. With 0.5 ms the median latency at half load was half as long again; 0.02 ms are no
better, and the changing begins to cost."""

GC_THRESHOLDS: Final = (100_000, 20, 100)
"""When Python looks for reference cycles, instead of at every 700 objects more: a batch makes tens of thousands, none
of them in a cycle, and all are gone with the next. Measured 9 % more events a second."""

MAX_BYTES: Final = 256 << 20
"""Most that a size may be set to: a batch of that and one line more stays below SQLite's limit of 1,000,000,000."""

ASK_TIMEOUT_S: Final = 10.0
"""How long `admin` waits for its answer, which a healthy server gives within 50 ms."""

_ENV: Final = "AGGREGATOR_"
_UNHEALTHY: Final = (b'{"status":"ok","health":"degraded"', b'{"status":"ok","health":"failed"')
_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|\{\s*\}|\[\s*\]|[{}\[\],:]|[^\s"{}\[\],:]+')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "serve")
    parser = _parser()
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        return 130


def run_server(config: Config, new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop) -> int:
    """Serve until stopped; return the exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            well = runner.run(serve(config))
            if not well:  # a commit may be stuck for ever in its thread, which would keep the process alive
                logging.shutdown()
                os._exit(1)
    except (CannotStart, CannotListen, StorageUnusable) as error:
        return _complain(str(error))
    return 0


def _serve(options: argparse.Namespace) -> int:
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(Config)}
    return run_server(Config(**fields))


def _admin(options: argparse.Namespace) -> int:
    command = shlex.join([options.word, *options.arguments])
    host, port = options.to
    try:
        reply = asyncio.run(ask(host, port, command, ASK_TIMEOUT_S))
    except (OSError, NotOurProtocol) as error:
        return _complain(f"{host}:{port}: {error}")
    print(_indented(reply.decode()) if sys.stdout.isatty() else reply.decode())
    well = reply.startswith(b'{"status":"ok"') and not reply.startswith(_UNHEALTHY)
    return 0 if well else 1


def _indented(json: str) -> str:
    """The same JSON over many lines. Decoding and encoding it again would change its numbers."""
    pieces: list[str] = []
    depth = 0
    for part in _JSON_TOKEN.findall(json):
        if part in "]}":
            depth -= 1
            pieces.append("\n" + "  " * depth)
        pieces.append(": " if part == ":" else part)
        if part in "[{":
            depth += 1
        if part in "[{,":
            pieces.append("\n" + "  " * depth)
    return "".join(pieces)


def _send(options: argparse.Namespace) -> int:
    host, port = options.to
    return asyncio.run(
        send(
            SendOptions(
                files=options.files,
                host=host,
                port=port,
                topic=options.topic,
                source=options.source,
                follow=options.follow,
                quiet=options.quiet,
                give_up_after_s=options.give_up_after,
            )
        )
    )


def _complain(message: str) -> int:
    print(f"aggregator: {message}", file=sys.stderr)
    return 1


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line: what is wrong, not the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (try --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="aggregator", description="A log aggregator: newline-delimited JSON over TCP into SQLite.")
    parser.add_argument("--version", action="version", version=f"aggregator {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="{serve,send,admin}")

    server = commands.add_parser("serve", help="run the server (the default)")
    server.set_defaults(run=_serve)
    defaults = Config()
    _option(server, "--host", str, defaults.host, "address to listen on")
    _option(server, "--port", _port, defaults.port, "acked port; 0: any free one")
    _option(server, "--silent-port", _port_or_off, defaults.silent_port, "port that never writes a byte; 0: any; off")
    _option(server, "--db", Path, defaults.db, "database file; its folder is made")
    _option(server, "--queue-events", _count, defaults.queue_events, "events waiting to be stored")
    _option(server, "--queue-bytes", _bytes, defaults.queue_bytes, "the same in bytes")
    _option(server, "--max-batch", _count, defaults.max_batch, "events in one transaction")
    _option(server, "--wal-limit-bytes", _count, defaults.wal_limit_bytes, "the WAL's size at which nothing is stored")
    _option(server, "--max-line-bytes", _bytes, defaults.max_line_bytes, "longest line")
    _option(server, "--max-connections", _count, defaults.max_connections, "clients at a time")
    _option(server, "--address-connections", _count, defaults.address_connections, "clients at a time from one address")
    _option(server, "--line-timeout", _seconds, defaults.line_timeout_s, "seconds to finish a line", "line_timeout_s")
    _option(server, "--reply-buffer-bytes", _bytes, defaults.reply_buffer_bytes, "replies waiting for one client")
    _option(server, "--drain-timeout", _seconds, defaults.drain_timeout_s, "seconds to end in", "drain_timeout_s")
    _option(server, "--log-level", _log_level, defaults.log_level, "debug, info, warning or error")

    # So that in a container, where the port is set in the environment, its health check finds it.
    to = ("127.0.0.1", server.get_default("port") or defaults.port)
    sender = commands.add_parser("send", help="send files or standard input, until every event is acked")
    sender.set_defaults(run=_send)
    sender.add_argument(
        "files", nargs="*", metavar="FILE", help="files of events, one a line; - or none: standard input"
    )
    _option(sender, "--to", address, to, "HOST:PORT of the acked port")
    sender.add_argument("--topic", help="the lines are plain text: wrap each into an event of this topic")
    sender.add_argument("--source", help="with --topic: the events' source (this host's name)")
    sender.add_argument("--follow", action="store_true", help="go on as the files grow, like tail -F")
    sender.add_argument("--quiet", action="store_true", help="nothing but errors on standard error")
    sender.add_argument("--give-up-after", type=_seconds, metavar="SECONDS", help="without any ack (never)")

    admin = commands.add_parser("admin", help="send an admin command and print the reply; HELP lists them")
    admin.set_defaults(run=_admin)
    _option(admin, "--to", address, to, "HOST:PORT of the acked port")
    admin.add_argument("word", metavar="COMMAND", help="STATS, HEALTH, TOPICS, EVENTS, EVENT, PING or HELP")
    admin.add_argument("arguments", nargs="*", metavar="ARGUMENT")
    return parser


def _option(
    parser: argparse.ArgumentParser,
    flag: str,
    parse: Callable[[str], Any],
    default: Any,
    text: str,
    dest: str | None = None,
) -> None:
    """An option that may also be set as ``AGGREGATOR_…`` in the environment; the command line wins."""
    variable = _ENV + flag.removeprefix("--").replace("-", "_").upper()
    shown = ":".join(map(str, default)) if isinstance(default, tuple) else default
    if (value := os.environ.get(variable)) is not None:
        try:
            default = parse(value)
        except argparse.ArgumentTypeError as error:
            parser.error(f"{variable}: {error}")
    name = dest or flag.removeprefix("--").replace("-", "_")
    parser.add_argument(
        flag, type=parse, default=default, dest=name, metavar=flag.split("-")[-1].upper(),
        help=f"{text} ({shown}; {variable})",
    )  # fmt: skip


def _integer(text: str, lowest: int, highest: int) -> int:
    if text.isdecimal() and len(text) <= 18 and lowest <= int(text) <= highest:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a number from {lowest} to {highest}, got {text!r}")


def _port(text: str) -> int:
    return _integer(text, 0, 65535)


def _port_or_off(text: str) -> int | None:
    return None if text.lower() == "off" else _port(text)


def _count(text: str) -> int:
    return _integer(text, 1, 1 << 40)


def _bytes(text: str) -> int:
    return _integer(text, 1, MAX_BYTES)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:  # refuses NaN too
        raise argparse.ArgumentTypeError(f"expected seconds, got {text!r}")
    return seconds


def _log_level(text: str) -> str:
    if text.lower() not in ("debug", "info", "warning", "error"):
        raise argparse.ArgumentTypeError(f"expected debug, info, warning or error, got {text!r}")
    return text.lower()


def address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` as an option's value; an IPv6 address may stand in brackets."""
    host, _, port = text.rpartition(":")
    try:
        return host.strip("[]") or "127.0.0.1", _integer(port, 1, 65535)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, got {text!r}") from None
