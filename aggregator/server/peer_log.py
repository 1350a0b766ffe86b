"""What the log says of clients. A client must not be able to fill the disk with our log, so it is limited."""

from __future__ import annotations

import logging
import time
from typing import Final

from aggregator.wire import Rejection

log = logging.getLogger("aggregator")

PEER_LOG_INTERVAL_S: Final = 10.0
"""What clients do wrong is logged at most once in this time for each kind of it, with the number left out."""


class PeerLog:
    """Says what clients do, of each kind at most one line in PEER_LOG_INTERVAL_S, with the number left out."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[float, int]] = {}  # when the next line of a kind may come, and how many did not

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

    def refused(self, peer: str, line: int, rejection: Rejection) -> None:
        """The silent port's only way to answer."""
        self.say(
            logging.WARNING, "silent port: refused line %d of %s: %s: %s", line, peer, rejection.code, rejection.detail
        )
