"""What is counted while the server runs. Each number is declared once, with its name on the wire and what it means."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from aggregator.metric import Kind, Metric, counter, declared, gauge
from aggregator.wire import Code

_COMMITS_KEPT: Final = 1024
"""Commit times kept for the percentiles: under load those of the last few seconds, with few commits all of them."""

_RATE_WINDOW_S: Final = 10
"""Events a second are a mean over this time: steady enough to read, short enough to follow a change."""


@dataclass(slots=True)
class Stats:
    """What happened since the server started. Counts are of events unless they say otherwise."""

    received: int = counter("received", "events, bad lines and bad commands read from clients")
    stored: int = counter("unique_processed", "events stored")
    duplicate: int = counter("duplicate_dropped", "events whose key was stored before")
    rejected: int = counter("rejected", "events, lines and commands answered with rejected")
    skipped_bytes: int = counter(
        "skipped_bytes", "bytes dropped: of lines that were too long, and of clients that were disconnected"
    )
    errors: int = counter("errors", "events and lines answered with error")
    connections: int = gauge("connections", "connections that are open")
    connections_total: int = counter("connections_total", "connections accepted")
    connections_refused: int = counter("connections_refused", "connections over a limit, or speaking another protocol")
    auth_failed: int = counter("auth_failed", "connections that failed to authenticate")
    subscribers_refused: int = counter("subscribers_refused", "subscriptions refused at the limit of subscribers")
    muted: int = counter("muted", "connections whose replies were given up, because they were not read")
    batches: int = counter("batches", "transactions that stored events")
    config_reload_ok: bool = True
    """Whether everything was reloaded at the last SIGHUP."""
    _rejected_by_code: Counter[str] = field(default_factory=Counter)
    _handshakes: Counter[str] = field(default_factory=Counter)
    _started: float = field(default_factory=time.monotonic)
    _commit_s: deque[float] = field(default_factory=lambda: deque(maxlen=_COMMITS_KEPT))
    _per_second: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_RATE_WINDOW_S + 1))

    def reject(self, code: Code) -> None:
        """Count one event, line or command that was answered with rejected."""
        self.rejected += 1
        self._rejected_by_code[code.value] += 1

    def handshake(self, result: str) -> None:
        """Count one TLS handshake that has ended: ok, failed, not_tls, timed_out or gone."""
        self._handshakes[result] += 1

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

    def metrics(self) -> Iterator[Metric]:
        """All numbers, with their current values."""
        yield from declared(self)
        yield Metric("rejected_by_code", dict(self._rejected_by_code), "rejected, by code", Kind.COUNTER)
        yield Metric("tls_handshakes", dict(self._handshakes), "TLS handshakes, by result", Kind.COUNTER)
        yield Metric(
            "config_reload_ok", int(self.config_reload_ok), "0 if the reload at the last SIGHUP failed, else 1"
        )
        yield Metric("uptime_s", round(self._uptime_s, 3), "time since the start")
        yield Metric("events_per_s", self._events_per_s(), f"events acked a second, over the last {_RATE_WINDOW_S} s")
        yield Metric(
            "commit_ms", self._commit_ms(), f"duration of the last {_COMMITS_KEPT} transactions, as percentiles"
        )

    @property
    def _uptime_s(self) -> float:
        return time.monotonic() - self._started

    def _commit_ms(self) -> dict[str, float | None]:
        """Median and 99th percentile in milliseconds; None before the first commit."""
        ordered = sorted(self._commit_s)
        if not ordered:
            return {"p50": None, "p99": None}
        last = len(ordered) - 1
        return {name: round(ordered[last * part // 100] * 1000, 3) for name, part in (("p50", 50), ("p99", 99))}

    def _events_per_s(self) -> float:
        """The mean over the last whole seconds."""
        now = int(time.monotonic())
        window = min(_RATE_WINDOW_S, max(1, int(self._uptime_s)))
        return round(sum(acked for second, acked in self._per_second if now - window <= second < now) / window, 1)
