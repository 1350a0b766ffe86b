"""Other systems: first those that promise as much as ours, and the fastest of them first."""

from __future__ import annotations

import re
from typing import Any

from bench import command
from bench.tables import markdown
from bench.tables.markdown import ms, whole


def table(record: dict[str, Any]) -> str:
    """Peers with events already stored have a table of their own."""
    measured = {name: figure | {"medians": command.medians(figure["runs"])}
                for name, figure in record["figures"].items() if figure["runs"]}  # fmt: skip
    ordered = sorted(
        measured, key=lambda name: (not measured[name]["strong"], -measured[name]["medians"]["events_per_s"])
    )
    tables = []
    for title, loaded in (("peer", False), ("peer with events already stored", True)):
        names = [name for name in ordered if name.endswith(" rows)") is loaded]
        if names:
            tables.append(
                markdown.rows([title, "events/s", "p50, p99 at 5,000/s", "an ack means"],
                              *(_row(name, measured[name]) for name in names))
            )  # fmt: skip
    return "\n".join([*tables, *_sentences(record["figures"], measured)])


def _row(name: str, figure: dict[str, Any]) -> list[str]:
    latency = figure["medians"].get("latency")
    return [
        re.sub(r"\d{4,}", lambda number: whole(int(number[0])), name),
        whole(figure["medians"]["events_per_s"]),
        f"{ms(latency['p50_ms'])}, {ms(latency['p99_ms'])}" if latency else "",
        figure["guarantee"],
    ]


def _sentences(figures: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    sentences = []
    offered = [figure["medians"]["latency"] for figure in measured.values() if "latency" in figure["medians"]]
    senders = [latency["sender"] for latency in offered if "sender" in latency]
    if senders:
        lates = [max(sender[f"late_{part}_ms"] for sender in senders) for part in ("p50", "p99")]
        sentences.append(
            f"Latencies over {whole(offered[0]['connections'])} connections; the sender's own lateness in them was "
            f"at most {ms(lates[0])} (p50), {ms(lates[1])} (p99).\n"
        )
    if missing := [f"{name} ({figure['not_run']})" for name, figure in figures.items() if "not_run" in figure]:
        sentences.append(f"Not run: {'; '.join(missing)}.\n")
    return sentences
