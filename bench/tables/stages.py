"""What an event costs at each stage: the two threads beside each other."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from bench.tables import markdown


def table(record: dict[str, Any]) -> str:
    medians, runs = record["figures"]["medians"], record["figures"]["runs"]
    threads = [_cells(stages) for stages in medians.values()]
    stages = zip_longest(*(one[:-1] for one in threads), fillvalue=("", ""))
    sums = [one[-1] for one in threads]
    return markdown.rows(
        [cell for name in medians for cell in (name, f"µs an event, medians of {len(runs)}")],
        *([cell for pair in row for cell in pair] for row in (*stages, sums)),
    )


def _cells(stages: dict[str, float]) -> list[tuple[str, str]]:
    return [(name, f"{us:.2f}") for name, us in stages.items()]
