"""The kinds of port. To add a kind, add it to PORTS, and add the class that serves it to ``listeners``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aggregator.config import Config


@dataclass(frozen=True, slots=True)
class Port:
    """What clients of one listener may expect."""

    name: str
    """Its name in the log."""
    option: str
    """The option that sets its number or path; the field of Config has the same name."""
    descriptor: str
    """``FileDescriptorName`` of a socket that is passed in (systemd.socket(5))."""
    replies: bool
    """Whether each line is answered. If not, a client is told nothing that it did not ask for, because that would harm
    a client that does not read."""

    tls: bool = False
    """Whether its clients speak TLS."""
    unix: bool = False
    """Whether it is a unix socket, which has a path instead of a number."""

    @property
    def host_option(self) -> str:
        """The option that sets the address it listens on."""
        return "--tls-host" if self.tls else "--host"

    def host(self, config: Config) -> str:
        """The address that it listens on."""
        return config.tls_host if self.tls else config.host

    def is_on(self, config: Config) -> bool:
        """Whether the administrator wants it."""
        return self._set(config) is not None

    def number(self, config: Config) -> int | None:
        """The number that the administrator has set; None: there is no such port, or it has a path."""
        number: int | None = None if self.unix else self._set(config)
        return number

    def path(self, config: Config) -> Path | None:
        """The path that the administrator has set; None: there is no such socket, or it has a number."""
        path: Path | None = self._set(config) if self.unix else None
        return path

    def _set(self, config: Config) -> Any:
        return getattr(config, self.option.removeprefix("--").replace("-", "_"))


ACKED: Final = Port("acked port", "--port", "acked", replies=True)
SILENT: Final = Port("silent port", "--silent-port", "silent", replies=False)
WRAP: Final = Port("wrap port", "--wrap-port", "wrap", replies=False)
FORWARD: Final = Port("forward port", "--forward-port", "forward", replies=False)
TLS: Final = Port("TLS port", "--tls-port", "tls", replies=True, tls=True)
TLS_SILENT: Final = Port("silent TLS port", "--tls-silent-port", "tls-silent", replies=False, tls=True)
SOCKET: Final = Port("socket", "--socket", "socket", replies=True, unix=True)
SILENT_SOCKET: Final = Port("silent socket", "--silent-socket", "silent-socket", replies=False, unix=True)

PORTS: Final = (ACKED, SILENT, WRAP, FORWARD, TLS, TLS_SILENT, SOCKET, SILENT_SOCKET)
"""All of them, in the order in which the log names them."""
