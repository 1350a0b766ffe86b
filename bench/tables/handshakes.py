"""Acks of a known client, quiet and while strangers make TLS handshakes."""

from __future__ import annotations

from typing import Any, Final

from bench.tables import markdown
from bench.tables.markdown import ms, whole

BAR: Final = "≤ 5"
"""For the p99, because a stranger may delay a known client and must not stop it."""


def table(record: dict[str, Any]) -> str:
    medians = record["figures"]["medians"]
    quiet, flooded, ratios = medians["quiet"], medians["flooded"], medians["flooded_over_quiet"]
    return markdown.rows(
        [f"medians of {len(record['figures']['runs'])}", "bar", "quiet", "under handshakes", "ratio"],
        ["ack latency p50", "", ms(quiet["p50_ms"]), ms(flooded["p50_ms"]), f"{ratios['p50_ms']:.1f}"],
        ["ack latency p99", BAR, ms(quiet["p99_ms"]), ms(flooded["p99_ms"]), f"{ratios['p99_ms']:.1f}"],
        ["events acked a second", "", whole(quiet["achieved_per_s"]), whole(flooded["achieved_per_s"]), ""],
        ["handshakes begun a second", "", "0", whole(flooded["handshakes_begun_per_s"]), ""],
        ["handshakes answered a second", "", "0", whole(flooded["handshakes_answered_per_s"]), ""],
    )
