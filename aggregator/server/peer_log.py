"""What the log says about clients. It is limited, because a client must not be able to fill the disk with our log."""

from __future__ import annotations

import logging
import re
import time
from typing import Final

from aggregator.server.excerpt import Excerpt
from aggregator.server.port import Port
from aggregator.wire import Rejection

_DETAIL = re.compile("%[sdg]")

log = logging.getLogger("aggregator")

PEER_LOG_INTERVAL_S: Final = 10.0
"""Each kind of mistake that clients make is logged at most once in this time, with the number of lines left out."""


class PeerLog:
    """Logs what clients do: of each kind at most one line in PEER_LOG_INTERVAL_S, with the number of lines left out."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[float, int]] = {}  # when a kind's next line may come, and how many were left out

    def say(self, level: int, kind: str, *details: object) -> None:
        """Log ``kind``, a format string, with its details, unless a line of its kind was logged just now."""
        now = time.monotonic()
        due, left_out = self._kinds.get(kind, (0.0, 0))
        if now < due:
            self._kinds[kind] = due, left_out + 1
            return
        since = f" (and {left_out} more since the last such line)" if left_out else ""
        log.log(level, kind + "%s", *details, since)
        self._kinds[kind] = now + PEER_LOG_INTERVAL_S, 0

    def rejected(self, port: Port, peer: str, line: int, rejection: Rejection, start: Excerpt) -> None:
        """Log an event, line or command that was rejected. On a port without replies only the log says so.

        The start of the line shows which program it is from.
        """
        level = logging.INFO if port.replies else logging.WARNING
        kind = f"{port.name}: rejected line %d of %s: {rejection.code}: %s: %s"
        self.say(level, kind, line, peer, rejection.detail, start)

    def close(self) -> None:
        """Log how many lines were left out, before the server ends."""
        for kind, (_, left_out) in self._kinds.items():
            if left_out:
                what = _DETAIL.sub("…", kind)
                log.info("%d more lines like this were left out: %s", left_out, what)
        self._kinds.clear()
