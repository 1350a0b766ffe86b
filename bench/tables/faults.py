"""What the fault tests measured, including the soak. The names of the faults are those of ``tests/faults``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from bench.tables import markdown
from bench.tables.markdown import whole

NAMES: Final = Path(__file__).parents[2] / "tests" / "faults" / "__init__.py"

_WRONG: Final = ("phantom", "duplicate", "corrupt")


def table(record: dict[str, Any]) -> str:
    faults, names = record["figures"]["faults"], _names()
    counted = {fault: one for fault, one in faults.items() if "lost" in one}
    outcomes = [test["outcome"] for test in record["figures"]["tests"].values()]
    others = [f"{names[fault]}{_rounds(one)}" for fault, one in faults.items() if fault not in counted]
    return (
        markdown.rows(
            ["fault", "rounds", "events sent", "lost", "phantom, duplicate or corrupt", "back after"],
            *(
                [
                    names[fault],
                    whole(one["rounds"]),
                    whole(one["sent"]),
                    whole(one["lost"]),
                    whole(sum(one[name] for name in _WRONG)),
                    f"{one['recovery_s']:.1f} s" if "recovery_s" in one else "",
                ]
                for fault, one in counted.items()
            ),
        )
        + f"\n{outcomes.count('passed')} of {len(outcomes)} tests passed. "
        + (f"Without such counts (rounds): {'; '.join(others)}.\n" if others else "\n")
    )


def found_table(record: dict[str, Any]) -> str:
    """Each fault with the worst figures of its tests."""
    names = _names()
    worst: dict[str, dict[str, float]] = {}
    for test in record["figures"]["tests"].values():
        figures = {key: value for key, value in test.get("measured", {}).items() if isinstance(value, int | float)}
        for fault in test.get("faults", []):
            known = worst.setdefault(fault, {})
            known.update({key: max(value, known.get(key, value)) for key, value in figures.items() if key != "rounds"})
    return markdown.rows(
        ["fault", "the worst of its tests"],
        *(
            [names[fault], ", ".join(f"{key} {value:g}" for key, value in figures.items())]
            for fault, figures in sorted(worst.items())
            if figures
        ),
    )


def soak_table(record: dict[str, Any]) -> str:
    (test,) = (one for one in record["figures"]["tests"].values() if one.get("measured", {}).get("name") == "soak")
    soak = test["measured"]
    return markdown.rows(
        [f"soak, {soak['seconds'] / 60:.0f} minutes at half of peak", "bar", "measured"],
        ["events sent, events/s", "", f"{whole(soak['sent'])}, {whole(soak['rate'])}"],
        [
            "memory: growth in 10 minutes",
            "≤ 1 MiB, and 4 MiB for the moment of looking",
            f"{soak['mib_in_10_min']:.1f} MiB",
        ],
        ["memory: most", "", f"{soak['rss_bytes'] / 1e6:.0f} MB"],
        [
            "p99 of two polite clients, second third and last third",
            "last ≤ 1.2 of the second + 50 ms",
            f"{soak['p99_early_s'] * 1000:.0f} ms, {soak['p99_late_s'] * 1000:.0f} ms",
        ],
        ["descriptors: most less fewest", "≤ 2", whole(soak["descriptors"])],
        ["WAL: largest", "< 134 MB", f"{soak['wal_bytes'] / 1e6:.0f} MB"],
    )


def _names() -> dict[str, str]:
    """The number and the name of each fault, by its number."""
    found = re.findall(r"^\| (([TR]\d+) .+?) \|", NAMES.read_text(), re.MULTILINE)
    return {number: name for name, number in found}


def _rounds(fault: dict[str, Any]) -> str:
    return f" ({whole(fault['rounds'])})" if "rounds" in fault else ""
