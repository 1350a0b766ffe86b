"""What is left after failovers of PostgreSQL, cuts of its connection, and the move from SQLite; from a long run."""

from __future__ import annotations

from typing import Any, Final

from bench.tables import markdown
from bench.tables.markdown import whole

_WRONG: Final = ("phantom", "duplicate", "corrupt")

_DELIVERY: Final = "ack to delivery on another server"


def table(record: dict[str, Any]) -> str:
    measured = [test.get("measured", {}) for test in record["figures"]["tests"].values()]
    counted = [one for one in measured if {"lost", "sent"} <= one.keys()]
    broken = markdown.rows(
        ["what is broken", "rounds", "events sent", "lost", "phantom, duplicate or corrupt", "back after (median)"],
        *(
            [
                one["name"],
                whole(one["rounds"]),
                whole(one["sent"]),
                whole(one["lost"]),
                whole(sum(one.get(name, 0) for name in _WRONG)),
                f"{one['recovery_median_s']:.2f} s" if "recovery_median_s" in one else "",
            ]
            for one in counted
        ),
    )
    delays = [
        [one["name"] + ", p99", "≤ 250 ms", markdown.ms(one["recovery_s"] * 1000)]
        for one in measured
        if one.get("name") == _DELIVERY
    ]
    return broken + ("\n" + markdown.rows(["while nothing is broken", "bar", "measured"], *delays) if delays else "")
