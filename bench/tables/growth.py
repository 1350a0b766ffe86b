"""What history costs: the points of the growth, and the last one against the first."""

from __future__ import annotations

from typing import Any

from bench.tables import markdown
from bench.tables.markdown import ms, whole


def table(record: dict[str, Any]) -> str:
    """The points of random ids, if both kinds were measured."""
    figures = record["figures"]
    history = figures.get("random") or figures["ordered"]
    return f"{_points(history['points'])}\n{_against_bars(history, figures.get('rate_second_to_first'))}"


def _points(points: list[dict[str, Any]]) -> str:
    return markdown.rows(
        ["events stored", "events/s, recent duplicates", "… any duplicates", "p50, p99 at 5,000/s",
         "p99 at half of peak", "memory", "bytes an event on disk", "start to first ack after SIGTERM, kill -9"],
        *(
            [
                f"{point['events'] / 1e6:.0f} M",
                whole(point["load"]["medians"]["events_per_s"]),
                whole(point["load_old_duplicates"]["events_per_s"]),
                f"{ms(point['at_rate']['p50_ms'])}, {ms(point['at_rate']['p99_ms'])}",
                ms(point["at_half_of_peak"]["medians"]["p99_ms"]),
                f"{whole(point['load']['medians']['rss_mb'])} MB",
                whole(point["disk"]["all_bytes_per_event"]),
                f"{point['start_after_sigterm_s']:.1f} s, {point['start_after_kill_s']:.1f} s",
            ]
            for point in points
        ),
    )  # fmt: skip


def _against_bars(history: dict[str, Any], ordered: dict[str, float] | None) -> str:
    first, last = history["points"][0], history["points"][-1]
    full, half = last["commands_at_full_load"], last["commands_at_half_of_peak"]
    disk = {name.removesuffix("_bytes_per_event"): size for name, size in last["disk"].items()}
    parts = ", ".join(f"{name} {disk[name]:.1f}" for name in ("blocks", "keys", "postings", "free") if name in disk)
    return markdown.rows(
        [f"at {last['events'] / 1e6:.0f} M against {first['events'] / 1e6:.0f} M", "bar", "measured"],
        ["rate, recent duplicates", "≥ 0.75", f"{history['rate_last_to_first']:.2f}"],
        ["rate, any duplicates", "", f"{history['rate_last_to_first_old_duplicates']:.2f}"],
        [
            "memory",
            "≤ 400 MB, ≤ 1.1",
            f"{whole(last['load']['medians']['rss_mb'])} MB, {history['rss_last_to_first']:.2f}",
        ],
        ["start to first ack after SIGTERM", "≤ 2 s", f"{last['start_after_sigterm_s']:.1f} s"],
        ["… after kill -9 under load", "≤ 5 s", f"{last['start_after_kill_s']:.1f} s"],
        ["`STATS`, `HEALTH` at full load, p99", "≤ 50 ms", _p99(full, "STATS", "HEALTH")],
        ["`EVENTS topic 10`, `EVENT topic id` at half of peak, p99", "≤ 50 ms", _p99(half, "EVENTS", "EVENT")],
        ["acks at half of peak, p99", "≤ 50 ms", ms(last["at_half_of_peak"]["medians"]["p99_ms"])],
        ["bytes an event on disk", "", f"{whole(disk['all'])}: {parts}"],
        ["until the filter is full again after a start, idle", "", f"{last['filter_filled_s']:.1f} s"],
        *([["rate of ordered ids against random ids, each size", "", _ratios(ordered)]] if ordered else []),
    )  # fmt: skip


def _ratios(of_sizes: dict[str, float]) -> str:
    return ", ".join(f"{ratio:.2f}" for ratio in of_sizes.values())


def _p99(commands: dict[str, dict[str, float]], *names: str) -> str:
    return ", ".join(ms(commands[name]["p99_ms"]) if name in commands else "not asked" for name in names)
