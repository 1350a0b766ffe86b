"""Percentiles of latencies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

PARTS: Final = (50, 90, 99, 99.9, 100)


def percentiles(latencies_s: Iterable[float], parts: Iterable[float] = PARTS) -> dict[str, float]:
    """Percentiles in milliseconds: ``p50_ms`` and so on, where ``p100_ms`` is the longest."""
    ordered = sorted(latencies_s)
    return {
        f"p{part:g}_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * part / 100))] * 1000, 3)
        for part in parts
    }
