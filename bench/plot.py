"""Draws the plots of report.md from result files alone: what is drawn is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

PERCENTILES: Final = ("p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "p100_ms")


def draw(results: list[Path], output: Path) -> None:
    """One picture: events/s beside the ceiling of the same run, and the ack latency's percentiles; all runs."""
    pyplot = _pyplot()
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


def draw_peers(path: Path, output: Path) -> None:
    """A bar for the median of each peer, a dot for each of its runs; blue where an ack means what it means with us."""
    pyplot = _pyplot()
    figures: dict[str, dict[str, Any]] = json.loads(path.read_text())["figures"]
    measured = {name: figure for name, figure in figures.items() if figure["runs"]}
    figure, axes = pyplot.subplots(figsize=(11, 1.2 + 0.32 * len(measured)), layout="constrained")
    for strong, color, meaning in (
        (True, "C0", "ack after fsync, exact deduplication for ever"),
        (False, "C7", "less than that"),
    ):
        names = [name for name, one in measured.items() if one["strong"] is strong]
        medians = [measured[name]["medians"]["events_per_s"] for name in names]
        places = [list(measured).index(name) for name in names]
        bars = axes.barh(places, medians, color=color, alpha=0.6, label=meaning)
        axes.bar_label(bars, [f"{median:,.0f}" for median in medians], padding=8)
        for place, name in zip(places, names, strict=True):
            runs = [run["events_per_s"] for run in measured[name]["runs"]]
            axes.plot(runs, [place] * len(runs), "o", color=color, markersize=4)
    axes.set(xscale="log", xlabel="events/s; the number is the median", yticks=range(len(measured)))
    axes.set_yticklabels(measured)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(output, metadata={"Date": None})


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "aggregator"  # the same figures give the same file
    from matplotlib import pyplot

    return pyplot
