"""Draws result files: plots show exactly what was measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

from bench import ceiling, command
from bench.result import RESULTS

Result: TypeAlias = dict[str, Any]
SYSTEM_COLORS: Final = {"ours": "C0", "redis": "C3", "nats": "C2"}
PERCENTILES: Final = ("p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "p100_ms")


def add_command(commands: command.Commands) -> None:
    """Add ``plot`` to the commands of the bench."""
    one = commands.add_parser("plot", help="draw result files, each as an .svg file in the same folder")
    one.set_defaults(run=_run)
    one.add_argument(
        "results",
        nargs="*",
        type=Path,
        metavar="RESULT",
        help="result file of load, latency, growth, peers, subscribe or engine (all records)",
    )


def _run(options: argparse.Namespace) -> int:
    drawn = {
        "load": draw_load, "latency": draw_latency, "growth": draw_growth, "peers": draw_peers,
        "subscribe": draw_subscribe, "engine": draw_engine,
    }  # fmt: skip
    paths = options.results or [path for name in drawn for path in sorted(RESULTS.glob(f"*/{name}.json"))]
    for path in paths:
        found = json.loads(path.read_text())
        if found["bench"] not in drawn:
            raise SystemExit(f"{path}: there is no plot of {found['bench']}")
        drawn[found["bench"]](found, path.with_suffix(".svg"))
    return 0


def draw_load(result: Result, output: Path) -> None:
    """Each run's events/s as a part of the append ceiling of the same run, for each kind of ids; lines are medians."""
    figure, axes = _subplots(1, 6)
    figures = result["figures"]
    for place, kind in enumerate(figures["medians"]):
        shares = [run[kind]["of_ceiling"] for run in figures["runs"]]
        axes.plot([place] * len(shares), shares, "o", color=f"C{place}", alpha=0.5)
        median = figures["medians"][kind]
        axes.plot([place - 0.2, place + 0.2], [median["of_ceiling"]] * 2, color=f"C{place}")
        axes.annotate(f"{median['events_per_s']:,.0f}/s", (place + 0.22, median["of_ceiling"]))
    axes.axhline(ceiling.BAR, color="grey", linestyle="--", label=f"bar: {ceiling.BAR}")
    axes.set(xticks=range(len(figures["medians"])), xlim=(-0.5, len(figures["medians"]) - 0.3), ylim=(0, None))
    axes.set_xticklabels([f"{kind} ids" for kind in figures["medians"]])
    axes.set_title("acked events/s as a fraction of the append ceiling")
    axes.legend(loc="lower left")
    _save(figure, output)


def draw_latency(result: Result, output: Path) -> None:
    """The percentiles of ack latency in every run, for each way of sending."""
    figure, axes = _subplots(1, 8)
    figures = result["figures"]
    for place, (name, label) in enumerate(
        {
            "one_in_flight": "one event in flight",
            "at_rate": f"{float(result['settings']['rate']):,g} events/s offered",
            "at_half_of_peak": "half of peak offered",
        }.items()
    ):
        for number, run in enumerate(figures["runs"]):
            times = [run[name][part] for part in PERCENTILES]
            axes.plot(PERCENTILES, times, color=f"C{place}", alpha=0.6, label=None if number else label)
    axes.axhline(figures["medians"]["fdatasync_p50_ms"], color="grey", linestyle="--", label="an fdatasync (median)")
    axes.set(yscale="log", ylabel="ms")
    axes.set_xticks(range(len(PERCENTILES)), [part.removesuffix("_ms") for part in PERCENTILES])
    axes.set_title("ack latency, counted from when each event was due")
    axes.legend()
    _save(figure, output)


def draw_growth(result: Result, output: Path) -> None:
    """Rate, latency, memory and disk over the number of stored events, for each kind of ids."""
    figure, ((rate, late), (memory, disk)) = _subplots(2, 11, rows=2)
    histories = {name: figures for name, figures in result["figures"].items() if name in ("random", "ordered")}
    for number, (name, history) in enumerate(histories.items()):
        points = history["points"]
        sizes = [point["events"] / 1e6 for point in points]
        ids = f"{name} ids"
        color = f"C{number}"
        for rates, style, label in (
            (
                [point["load"]["medians"]["events_per_s"] / 1000 for point in points],
                "o-",
                "duplicates of recent events",
            ),
            ([point["load_old_duplicates"]["events_per_s"] / 1000 for point in points], "s--", "of any event"),
        ):
            rate.plot(sizes, rates, style, color=color, label=f"{ids}, {label}")
        for part, style, label in (("p50_ms", "o-", "p50"), ("p99_ms", "s--", "p99")):
            late.plot(sizes, [point["at_rate"][part] for point in points], style, color=color, label=f"{ids}, {label}")
        memory.plot(sizes, [point["load"]["medians"]["rss_mb"] for point in points], "o-", color=color, label=ids)
        all_bytes = [point["disk"]["all_bytes_per_event"] for point in points]
        disk.plot(sizes, all_bytes, "o-", color=color, label=f"{ids}, all")
        if "keys_bytes_per_event" in points[0]["disk"]:
            keys = [point["disk"].get("keys_bytes_per_event", 0) for point in points]
            disk.plot(sizes, keys, "s--", color=color, label=f"{ids}, key ledger")
    for axes, title in (
        (rate, "1000 acked events/s"), (late, "ack latency at 5,000 events/s, ms"),
        (memory, "server memory (RSS), MB"), (disk, "bytes on disk for an event"),
    ):  # fmt: skip
        axes.set(ylim=(0, None), xlabel="million events stored")
        axes.set_title(title)
        axes.legend(fontsize="small")
    _save(figure, output)


def draw_peers(result: Result, output: Path) -> None:
    """A bar for the median of each peer, a dot for each of its runs; blue if an ack means what ours means."""
    measured = {name: figure for name, figure in result["figures"].items() if figure["runs"]}
    figure, axes = _subplots(1, 11, height=1.2 + 0.32 * len(measured))
    for strong, color, meaning in (
        (True, "C0", "ack after fsync, exact deduplication for ever"),
        (False, "C7", "a weaker guarantee"),
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
    _save(figure, output)


def draw_subscribe(result: Result, output: Path) -> None:
    """Catch-up, and the cost and delay of fan-out: bars are medians, dots are runs, each system has a color."""
    figures = result["figures"]
    figure, (caught, cost, delay) = _subplots(3, 14)
    if "catch_up" in figures:
        runs = figures["catch_up"]["runs"]
        bars = [(name, what) for name, found in runs[0].items() for what in found]
        for place, (name, what) in enumerate(bars):
            rates = [run[name][what]["events_per_s"] / 1000 for run in runs]
            _bar(caught, place, rates, SYSTEM_COLORS[name], width=0.7)
        caught.set_xticks(range(len(bars)), [f"{name}, {what.replace('_', ' ')}" for name, what in bars],
                          rotation=30, ha="right")  # fmt: skip
    if "fan_out" in figures:
        runs = figures["fan_out"]["runs"]
        for number, name in enumerate(SYSTEM_COLORS):
            for place, shape in enumerate(runs[0]):
                measured = [run[shape][name] for run in runs if name in run[shape]]
                if measured:
                    x, color = place + (number - 1) * 0.27, SYSTEM_COLORS[name]
                    label = None if place else name
                    _bar(cost, x, [one["server_cpu_us_per_delivery"] for one in measured], color, 0.25, label)
                    for part, strength in (("p99_ms", 0.4), ("p50_ms", 1.0)):
                        times = [one["after_sent"][part] for one in measured]
                        delay.bar(x, median(times), 0.25, color=color, alpha=strength)
        for axes in (cost, delay):
            axes.set_xticks(range(len(runs[0])), list(runs[0]), rotation=30, ha="right")
        cost.legend()
        delay.set_yscale("log")
    caught.set_title("catch-up: 1000 events/s")
    cost.set_title("fan-out: server's processor time per delivery, µs")
    delay.set_title("fan-out: delay after sending, ms: p50, p99 (pale)")
    _save(figure, output)


def draw_engine(result: Result, output: Path) -> None:
    """Events/s of each measurement, yardsticks in grey; then rate and WAL over the number of keys."""
    figures = result["figures"]
    figure, (rates, rate, wal) = _subplots(3, 14)
    shown = [
        (f"{name.replace('_', ' ')}, {which.replace('_', ' ')}", name, which)
        for name, one in figures["medians"].items()
        for which, measured in one.items()
        if isinstance(measured, dict) and "events_per_s" in measured
    ]
    for place, (_, name, which) in enumerate(shown):
        values = [run[name][which]["events_per_s"] / 1000 for run in figures["runs"]]
        _bar(rates, place, values, "C7" if which in ("plain", "one", "sqlite") else "C0", width=0.7)
    rates.set_xticks(range(len(shown)), [label for label, _, _ in shown], rotation=45, ha="right")
    rates.set_title("1000 events/s")
    for axes, key, scale, title in (
        (rate, "events_per_s", 1000, "1000 events/s, batches of 10,000"),
        (wal, "wal_bytes_per_event", 1, "WAL, bytes an event"),
    ):  # fmt: skip
        for number, which in enumerate(("ours", "plain")):
            points = [(0, figures["medians"]["fresh_10000"])] + [
                (one["keys"], one["medians"]) for one in figures["grown"]
            ]
            axes.plot([keys / 1e6 for keys, _ in points], [one[which][key] / scale for _, one in points], "o-",
                      color=("C0", "C7")[number], label=("this engine", "psycopg alone")[number])  # fmt: skip
        axes.set(ylim=(0, None), xlabel="million keys stored")
        axes.set_title(title)
        axes.legend()
    _save(figure, output)


def _bar(axes: Any, x: float, values: list[float], color: str, width: float, label: str | None = None) -> None:
    axes.bar(x, median(values), width, color=color, alpha=0.6, label=label)
    axes.plot([x] * len(values), values, "o", color=color, markersize=3)


def _subplots(columns: int, width: float, rows: int = 1, height: float | None = None) -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "aggregator"  # so that the same figures give the same file
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=(width, height or 4 * rows), layout="constrained")


def _save(figure: Any, output: Path) -> None:
    figure.savefig(output, metadata={"Date": None})
