"""PostgreSQL as the engine: ratios against their bars, and the rates behind them."""

from __future__ import annotations

from typing import Any, Final

from bench.engine import BARS, MOST, judged
from bench.tables import markdown
from bench.tables.markdown import whole

NAMES: Final = {
    "one_lane_10000": ("one lane, batches of 10,000, empty tables, to psycopg alone", "fresh_10000", "ours", "plain"),
    "one_lane_1000": ("the same in batches of 1,000", "fresh_1000", "ours", "plain"),
    "standby_10000": ("the same in batches of 10,000 with a synchronous standby", "standby_10000", "ours", "plain"),
    "lanes_10000": ("four lanes to one lane, one server's engine", "lanes_10000", "four", "one"),
    "server": ("a whole server, 4 connections, to the same over SQLite", "server", "postgres", "sqlite"),
}


def table(record: dict[str, Any]) -> str:
    figures = record["figures"]
    ratios, medians = figures["ratios"], figures["medians"]
    body = [
        [text, f"≥ {BARS[name]}", f"{ratios[name]:.2f}", _rates(medians[which], one, other)]
        for name, (text, which, one, other) in NAMES.items()
    ]
    for point in figures["grown"]:
        text = f"one lane, batches of 10,000, {whole(point['keys'] / 1e6)} million keys, to psycopg alone"
        bar = f"≥ {BARS['grown_10000']}" if point is judged(figures["grown"]) else ""
        body.append([text, bar, f"{point['medians']['ratio']:.2f}", _rates(point["medians"], "ours", "plain")])
    fresh = medians["fresh_10000"]
    body.append(["WAL for an event, empty tables, to psycopg alone", f"≤ {MOST['wal_fresh']}", *_wal(fresh)])
    for point in figures["grown"]:
        bar = f"≤ {MOST['wal_grown']}" if point is judged(figures["grown"]) else ""
        body.append([f"the same, {whole(point['keys'] / 1e6)} million keys", bar, *_wal(point["medians"])])
    held = medians["held"]
    body.append(
        [
            "commits under a snapshot that is held, last to first",
            f"≤ {MOST['held']}",
            f"{held['ours']['last_to_first']:.2f}",
            f"a row that each commit changes: {held['changed_row']['last_to_first']:.0f}",
        ]
    )
    return markdown.rows([f"medians of {len(figures['runs'])}", "bar", "ratio", "events/s or bytes"], *body)


def _rates(medians: dict[str, Any], one: str, other: str) -> str:
    return f"{whole(medians[one]['events_per_s'])} to {whole(medians[other]['events_per_s'])}"


def _wal(medians: dict[str, Any]) -> list[str]:
    ours, plain = medians["ours"]["wal_bytes_per_event"], medians["plain"]["wal_bytes_per_event"]
    return [f"{medians['wal_ratio']:.2f}", f"{whole(ours)} to {whole(plain)} B"]
