"""Options, their values, and the environment variables that set them."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

from aggregator import streams
from aggregator.address import EVERYWHERE, without_brackets
from aggregator.client.terminal import printable
from aggregator.config import Anonymous, Config
from aggregator.wire import moment
from aggregator.wrap.topic import BadTemplate, TopicTemplate

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

MAX_BYTES: Final = 256 << 20
"""The largest size that may be set: a batch of that size, and one line more, stays below SQLite's limit of
1,000,000,000."""

ENV: Final = "AGGREGATOR_"
_LINK: Final = re.compile(r"(tcp|udp|sctp)://")
_OF_KUBERNETES: Final = re.compile(ENV + r"(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP|SCTP)\w*)")
"""Variables that Kubernetes sets in each container of a namespace with a service called aggregator or aggregator-…, in
addition to ``AGGREGATOR_PORT=tcp://…``."""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is reported in one line: what is wrong, not the whole usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.variables: set[str] = set()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (try --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse itself turns a full disk into a traceback or into nothing, depending on Python's version.
        if file is not sys.stdout:
            _write_error(message)
        elif not put_out(message.encode(file.encoding, "backslashreplace")):
            self.exit(1)


def put_out(data: bytes) -> bool:
    """Write a result to standard output; return whether that went well, and report it if not.

    A reader that has gone is no failure: ``head`` and ``grep -q`` have seen what they wanted.
    """
    _, error = streams.write(streams.STDOUT, data)
    if error is None or isinstance(error, BrokenPipeError):
        return True
    complain(f"standard output: {error.strerror}")
    return False


def complain(message: str) -> int:
    """Say what went wrong; return the exit code."""
    _write_error(f"aggregator: {printable(message)}\n")
    return 1


def _write_error(text: str) -> None:
    # If this fails, there is nowhere else to report it.
    streams.write(streams.STDERR, text.encode(sys.stderr.encoding, "backslashreplace"))


# --- options and variables


@dataclass(frozen=True, slots=True)
class Default:
    """The value of an option that is not on the command line: that of its variable, else ``otherwise``.

    The variable is not read before it is needed, so that a mistake in it harms no other command.
    """

    parser: Parser
    variable: str
    parse: Callable[[str], Any]
    otherwise: Any

    def settle(self, remarks: list[str]) -> Any:
        text = os.environ.get(self.variable)
        if text and _LINK.match(text):
            remarks.append(f"{self.variable}={text} is ignored: Kubernetes sets it for a service of this name")
        elif text:
            try:
                return self.parse(text)
            except argparse.ArgumentTypeError as error:
                self.parser.error(f"{self.variable}: {error}")
        return self.otherwise(remarks) if callable(self.otherwise) else self.otherwise


def settle(options: argparse.Namespace) -> list[str]:
    """Give each option that is not on the command line its value; return remarks on the environment.

    ``options.typed`` gets the names of the options that are on the command line.
    """
    remarks: list[str] = []
    options.typed = {name for name, value in vars(options).items() if not isinstance(value, Default)}
    for name, value in list(vars(options).items()):
        if isinstance(value, Default):
            setattr(options, name, value.settle(remarks))
    return remarks


def unknown_variables(known: set[str]) -> list[str]:
    """Variables that look like an option's, but are not."""
    ours = {name for name in os.environ if name.startswith(ENV) and os.environ[name]}
    return sorted(name for name in ours - known if not _OF_KUBERNETES.fullmatch(name))


def option(
    parser: Parser,
    flag: str,
    parse: Callable[[str], Any],
    default: Any,
    text: str,
    dest: str | None = None,
    shown: str | None = None,
    metavar: str | None = None,
) -> None:
    """An option that may also be set as ``AGGREGATOR_…`` in the environment; the command line wins.

    An empty variable counts as not set.
    """
    name = flag.removeprefix("--").replace("-", "_")
    variable = ENV + name.upper()
    parser.variables.add(variable)
    parser.add_argument(
        flag, type=parse, default=Default(parser, variable, parse, default), dest=dest or name,
        metavar=metavar or flag.split("-")[-1].upper(), help=f"{text} ({shown or default}; {variable})",
    )  # fmt: skip


# --- values


def integer(text: str, lowest: int, highest: int) -> int:
    if text.isdecimal() and len(text) <= 18 and lowest <= int(text) <= highest:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a number from {lowest} to {highest}, got {text!r}")


def port(text: str) -> int:
    return integer(text, 0, 65535)


def port_or_off(text: str) -> int | None:
    return None if text.lower() == "off" else port(text)


def count(text: str) -> int:
    return integer(text, 1, 1 << 40)


def size(text: str) -> int:
    return integer(text, 1, MAX_BYTES)


def mode(text: str) -> str:
    """The permissions of a file, in octal."""
    if re.fullmatch("0?[0-7]{3}", text):
        return text
    raise argparse.ArgumentTypeError(f"expected permissions in octal, such as 0660, got {text!r}")


def seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:  # refuses NaN too
        raise argparse.ArgumentTypeError(f"expected seconds, got {text!r}")
    return seconds


def age_or_time(text: str) -> str:
    """A time that the server can read, returned as it was typed, because ages are counted from the server's clock."""
    if moment.read(text, 0) is None:
        raise argparse.ArgumentTypeError(f"expected a date and time, an age like 10m, or NOW, got {text!r}")
    return text


def position(text: str) -> int | str:
    """A position, which only the server interprets."""
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected a position, got {text!r}")
    return int(text) if text.isdecimal() and len(text) <= 18 else text


def log_level(text: str) -> str:
    if text.lower() not in ("debug", "info", "warning", "error"):
        raise argparse.ArgumentTypeError(f"expected debug, info, warning or error, got {text!r}")
    return text.lower()


def anonymous(text: str) -> Anonymous:
    try:
        return Anonymous(text.lower())
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {', '.join(Anonymous)}, got {text!r}") from None


def host(text: str) -> str:
    """An address or a name; an IPv6 address may stand in brackets."""
    if name := without_brackets(text):
        return name
    everywhere = "{}, {} or {}".format(*EVERYWHERE)
    raise argparse.ArgumentTypeError(
        f"expected an address or a name, got none; {everywhere} means every address of this machine"
    )


def file(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a file, got none")
    return Path(text)


def database(text: str) -> Path | str:
    """A file, or the URL of a PostgreSQL database."""
    return text if text.startswith(("postgresql://", "postgres://")) else file(text)


def lanes(text: str) -> int:
    return integer(text, 1, 1024)


def standbys(text: str) -> int:
    return integer(text, 0, 100)


def field(text: str) -> str | None:
    """The name of a field of a record; an empty one names none."""
    return text or None


def topic_template(text: str) -> str:
    """A topic that may contain fields of the payload."""
    try:
        TopicTemplate(text)
    except BadTemplate as error:
        raise argparse.ArgumentTypeError(f"{error}, in {text!r}") from None
    return text


def address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` as an option's value; an IPv6 address may stand in brackets."""
    host, _, port = text.rpartition(":")
    try:
        number = integer(port, 1, 65535)
        if ":" in (name := without_brackets(host)):
            ipaddress.IPv6Address(name)
    except (argparse.ArgumentTypeError, ValueError):
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, got {text!r}") from None
    return name or Config().host, number
