"""Counters and gauges as one plain object, passed to whoever counts; never global."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

_COMMITS_KEPT: Final = 1024
"""Commit times kept for the percentiles: the last few seconds under load, and exact when idle."""

_RATE_WINDOW_S: Final = 10
"""Events a second are a mean over this time: steady enough to read, short enough to follow a change."""


class Stats:
    """What happened since the server started. Counts are of events unless they say otherwise."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.received = 0  # read from a client, valid or not
        self.stored = 0
        self.duplicate = 0
        self.rejected = 0  # bad lines and bad commands too
        self.errors = 0  # answered "error": unknown whether stored
        self.connections = 0  # open now
        self.connections_total = 0
        self.connections_refused = 0  # over the cap, or speaking HTTP or TLS
        self.muted = 0  # connections whose replies were given up
        self.batches = 0
        self.commit_started: float | None = None  # time.monotonic() of the running commit
        self.trouble: str | None = None  # why nothing is being stored at the moment
        self.failure: str | None = None  # why nothing will be stored any more
        self._commit_s: deque[float] = deque(maxlen=_COMMITS_KEPT)
        self._per_second: deque[tuple[int, int]] = deque(maxlen=_RATE_WINDOW_S + 1)

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def commit_age_s(self) -> float:
        """How long the running commit has been running; 0.0 when none is."""
        return time.monotonic() - self.commit_started if self.commit_started is not None else 0.0

    def committed(self, stored: int, duplicate: int, commit_s: float) -> None:
        """Count one batch that was committed in ``commit_s`` seconds."""
        self.batches += 1
        self.stored += stored
        self.duplicate += duplicate
        self._commit_s.append(commit_s)
        second = int(time.monotonic())
        acked = stored + duplicate
        if self._per_second and self._per_second[-1][0] == second:
            acked += self._per_second.pop()[1]
        self._per_second.append((second, acked))

    def commit_ms(self) -> dict[str, float | None]:
        """Median and 99th percentile of the last commits, in milliseconds; None before the first."""
        ordered = sorted(self._commit_s)
        if not ordered:
            return {"p50": None, "p99": None}
        last = len(ordered) - 1
        return {name: round(ordered[last * part // 100] * 1000, 3) for name, part in (("p50", 50), ("p99", 99))}

    def events_per_s(self) -> float:
        """Events acked a second, over the last ten whole seconds."""
        now = int(time.monotonic())
        window = min(_RATE_WINDOW_S, max(1, int(self.uptime_s)))
        return round(sum(acked for second, acked in self._per_second if now - window <= second < now) / window, 1)
