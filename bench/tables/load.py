"""Throughput against the append ceiling."""

from __future__ import annotations

from typing import Any, Final

from bench import ceiling
from bench.tables import markdown
from bench.tables.markdown import whole

IDS: Final = {"random": "random ids (UUIDv4)", "ordered": "ordered ids (UUIDv7)"}


def table(record: dict[str, Any]) -> str:
    medians, runs = record["figures"]["medians"], record["figures"]["runs"]
    kinds = list(medians)
    wrong = [sum(not run[kind]["exact"] or bool(run[kind]["errors"]) for run in runs) for kind in kinds]
    return markdown.rows(
        [f"medians of {len(runs)}", "bar", *(IDS[kind] for kind in kinds)],
        ["acked, fsynced, deduplicated events/s", "", *(whole(medians[kind]["events_per_s"]) for kind in kinds)],
        ["append ceiling of the same runs, rows/s", "", *(whole(medians[kind]["ceiling_per_s"]) for kind in kinds)],
        ["part of the ceiling", f"≥ {ceiling.BAR}", *(f"{medians[kind]['of_ceiling']:.2f}" for kind in kinds)],
        [
            "server's processor time for an event, both threads",
            "",
            *(f"{medians[kind]['server_cpu_us_per_event']:.1f} µs" for kind in kinds),
        ],
        ["server's memory", "", *(f"{whole(medians[kind]['server_rss_mb'])} MB" for kind in kinds)],
        ["runs with an error, a lost or a doubled event", "0", *map(str, wrong)],
    )
