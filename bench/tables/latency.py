"""Ack latency, and the sender's own part of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.tables import markdown
from bench.tables.markdown import ms, whole


def table(record: dict[str, Any]) -> str:
    medians, runs = record["figures"]["medians"], record["figures"]["runs"]
    ratios = medians["in_fdatasyncs"]

    def in_fdatasyncs(name: str, part: str) -> str:
        return f"{ms(medians[name][f'{part}_ms'])}: {ratios[f'{name}_{part}']:.1f} fdatasyncs"

    single, rate, half = (medians[name] for name in ("one_in_flight", "at_rate", "at_half_of_peak"))
    return markdown.rows(
        [f"medians of {len(runs)}", "p50", "bar", "p99", "bar"],
        ["one connection, one event in flight", in_fdatasyncs("one_in_flight", "p50"), "≤ 6 fdatasyncs",
         ms(single["p99_ms"]), ""],
        [_offered(rate), in_fdatasyncs("at_rate", "p50"), "≤ 8 fdatasyncs",
         in_fdatasyncs("at_rate", "p99"), "≤ 25 fdatasyncs"],
        *_of_the_sender(rate),
        [f"half of peak: {_offered(half)}", ms(half["p50_ms"]), "", ms(half["p99_ms"]), "≤ 50 ms"],
        *_of_the_sender(half),
        ["an fdatasync of 4 KiB, between these", f"{medians['fdatasync_p50_ms']:.3f} ms", "", "", ""],
    )  # fmt: skip


def _offered(figures: dict[str, Any]) -> str:
    over = f" over {figures['connections']:.0f} connections" if "connections" in figures else ""
    return f"{whole(figures['offered_per_s'])}/s offered{over}"


def _of_the_sender(figures: dict[str, Any]) -> Iterator[list[str]]:
    if sender := figures.get("sender"):  # else the record is older than this figure
        cost = f"{sender['cpu_us_per_event']:.0f} µs"
        name = f"… of which the sender itself was late (its processor time for an event: {cost})"
        yield [name, ms(sender["late_p50_ms"]), "", ms(sender["late_p99_ms"]), ""]
