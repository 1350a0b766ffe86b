"""The kinds of port. One more kind is one more line of PORTS, and what serves it in ``listeners``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aggregator.config import Config


@dataclass(frozen=True, slots=True)
class Port:
    """What clients of one listener may expect."""

    name: str
    """As in the log."""
    option: str
    """What sets its number; the field of Config has the same name."""
    descriptor: str
    """``FileDescriptorName`` of a socket that is passed in (systemd.socket(5))."""
    replies: bool
    """Whether each line is answered. Otherwise no client is told anything that it did not ask for: a client that does
    not read would be harmed."""

    def number(self, config: Config) -> int | None:
        """The number that the administrator has set; None: there is no such port."""
        number: int | None = getattr(config, self.option.removeprefix("--").replace("-", "_"))
        return number


ACKED: Final = Port("acked port", "--port", "acked", replies=True)
SILENT: Final = Port("silent port", "--silent-port", "silent", replies=False)
WRAP: Final = Port("wrap port", "--wrap-port", "wrap", replies=False)
FORWARD: Final = Port("forward port", "--forward-port", "forward", replies=False)

PORTS: Final = (ACKED, SILENT, WRAP, FORWARD)
"""All of them, in the order in which the log names them."""
