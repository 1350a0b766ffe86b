"""``aggregator unit``: units for systemd, with the paths of this installation."""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from pathlib import Path
from typing import Final

from aggregator.cli.parser import Commands, complain, put_out
from aggregator.config import Config
from aggregator.server.port import PORTS, Port

SERVICE: Final = "aggregator.service"

_EXAMPLES: Final = {"--wrap-port": 8082, "--forward-port": 24224, "--tls-port": 6513, "--tls-silent-port": 6514}
"""The number in the unit of a port that is off by default. Forward clients send to their number by default, and so does
syslog over TLS."""

_OWNER: Final = """\
# Who may connect: the group.
SocketGroup=aggregator
SocketMode=@MODE@
"""

_SOCKETS: Final = {f"aggregator-{port.descriptor}.socket": port for port in PORTS}

_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 (nothing is opened there)
"""What the unit's ProtectHome and PrivateTmp hide from the server."""


def add_command(commands: Commands) -> None:
    """Add ``unit`` to the commands."""
    unit = commands.add_parser("unit", help="print a unit for systemd: the service, or the socket of one port")
    unit.set_defaults(run=_run, parser=unit)
    unit.add_argument(
        "unit", nargs="?", default=SERVICE, choices=(SERVICE, *_SOCKETS), metavar="UNIT",
        help=f"{SERVICE} (the default), {', '.join(_SOCKETS)}",
    )  # fmt: skip


def _run(options: argparse.Namespace) -> int:
    port = _SOCKETS.get(options.unit)
    program = _program()
    if not port and any(Path(program[0]).is_relative_to(folder) for folder in _HIDDEN):
        complain(
            f"{program[0]} is in a folder that this unit hides from the server: install it elsewhere, such as in /opt"
        )
    filled_in = {"@PROGRAM@": " ".join(map(_quoted, program))}
    if port:
        owner = _OWNER.replace("@MODE@", Config().socket_mode) if port.unix else ""
        filled_in = {"@NAME@": port.descriptor, "@WHERE@": _where(port), "@OWNER@": owner}
    template = "aggregator.socket" if port else SERVICE
    text = resources.files("aggregator").joinpath("systemd", template).read_text(encoding="utf-8")
    for placeholder, value in filled_in.items():
        text = text.replace(placeholder, value)
    return 0 if put_out(text.encode()) else 1


def _where(port: Port) -> str:
    """Where the socket of a port listens, as ListenStream takes it: TLS on all addresses, plain text on loopback."""
    if port.unix:
        return f"/run/aggregator-{port.descriptor}.sock"
    number = port.number(Config()) or _EXAMPLES[port.option]
    return str(number) if port.tls else f"127.0.0.1:{number}"


def _program() -> list[str]:
    """How to run this installation: its script, or its Python if it has no script."""
    python = Path(sys.executable)
    script = python.with_name("aggregator")
    return [str(script)] if script.exists() else [str(python), "-m", "aggregator"]


def _quoted(word: str) -> str:
    """A word as ExecStart takes it (systemd.service(5), "Command lines")."""
    word = word.replace("%", "%%").replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{word}"' if " " in word else word
