"""Draws the plots of report.md from result files alone: what is drawn is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

PERCENTILES: Final = ("p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "p100_ms")


def draw(results: list[Path], output: Path) -> None:
    """One picture: events/s beside the ceiling of the same run, and the ack latency's percentiles; all runs."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "aggregator"  # the same figures give the same file
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for number, path in enumerate(results):
        result = json.loads(path.read_text())
        name = f"{result['settings']['ids']} ids"
        runs: list[dict[str, Any]] = result["figures"]["runs"]
        color = f"C{number}"
        shares = [run["of_ceiling"] for run in runs]
        left.plot([number] * len(runs), shares, "o", color=color, alpha=0.5)
        left.plot([number - 0.2, number + 0.2], [result["figures"]["medians"]["of_ceiling"]] * 2, color=color)
        for run in runs:
            times = [run["latency"][part] for part in PERCENTILES]
            right.plot(PERCENTILES, times, color=color, alpha=0.5, label=name if run is runs[0] else None)
    left.axhline(0.15, color="grey", linestyle="--", label="bar: 0.15")
    left.set(xticks=range(len(results)), xlim=(-0.5, len(results) - 0.5), ylim=(0, None))
    left.set_xticklabels([json.loads(path.read_text())["settings"]["ids"] + " ids" for path in results])
    left.set_title("acked events/s, as a part of the append ceiling")
    left.legend()
    right.set(yscale="log", ylabel="ms")
    right.set_title(f"ack latency at {json.loads(results[0].read_text())['settings']['rate']} events/s offered")
    right.legend()
    figure.savefig(output, metadata={"Date": None})
