"""What an event costs at each stage, with the two threads side by side."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from bench.tables import markdown


def table(record: dict[str, Any]) -> str:
    medians, runs = dict(record["figures"]["medians"]), record["figures"]["runs"]
    wrapped = medians.pop("wrap port", None)
    threads = [_cells(stages) for stages in medians.values()]
    stages = zip_longest(*(one[:-1] for one in threads), fillvalue=("", ""))
    sums = [one[-1] for one in threads]
    rows = markdown.rows(
        [cell for name in medians for cell in (name, f"µs an event, medians of {len(runs)}")],
        *([cell for pair in row for cell in pair] for row in (*stages, sums)),
    )
    return rows + "\n" + _wrapped(wrapped) if wrapped else rows


def _wrapped(texts: dict[str, Any]) -> str:
    """The texts of the wrap port side by side; the last row is the ratio of all stages to those of an event."""
    names = next(iter(texts.values()))
    return markdown.rows(
        ["wrap port", *texts], *([name, *(f"{stages[name]:.2f}" for stages in texts.values())] for name in names)
    )


def _cells(stages: dict[str, float]) -> list[tuple[str, str]]:
    return [(name, f"{us:.2f}") for name, us in stages.items()]
