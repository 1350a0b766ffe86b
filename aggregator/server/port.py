"""The kinds of port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Port:
    """What clients of one listener may expect."""

    name: str
    """As in the log."""
    option: str
    """What sets its number."""
    replies: bool
    """Whether each line is answered. Otherwise not a byte is written: a client that does not read would be harmed."""


ACKED: Final = Port("acked port", "--port", replies=True)
SILENT: Final = Port("silent port", "--silent-port", replies=False)
