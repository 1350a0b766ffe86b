"""What the commands of the bench share: options, repeated runs with progress, medians, a result file."""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from tqdm import tqdm

from bench import result

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_common(parser: argparse.ArgumentParser, runs: int) -> None:
    """Add the options that every measuring command has."""
    parser.add_argument(
        "--runs", type=int, default=runs, help="runs, each with an empty database; medians count (%(default)s)"
    )
    add_paths(parser)


def add_paths(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a measuring command works, and where it writes its result file."""
    parser.add_argument(
        "--folder", type=Path, help="folder for the databases, on the disk to measure (a temporary folder)"
    )
    parser.add_argument(
        "--output", type=Path, help="result file; -: standard output (this machine's record in bench/results)"
    )


def repeat(name: str, options: argparse.Namespace, one_run: Callable[[int, Path], dict[str, Any]]) -> int:
    """Do ``options.runs`` runs and write the result file. Returns the exit code: 1 unless all was exact."""
    runs: list[dict[str, Any]] = []
    progress = tqdm(range(options.runs), unit="run", disable=not sys.stderr.isatty())
    gc.freeze()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number in progress:
            one = one_run(number, Path(folder))
            runs.append(one)
            for line in summary(one):
                progress.write(line, file=sys.stderr)
    write(name, options, {"medians": medians(runs), "runs": runs})
    return exit_code(runs)


def write(name: str, options: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Write the result file with the options as settings."""
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("run", "output", "folder")}
    result.write(result.describe(name, settings, figures), options.output)


def medians(runs: list[Any]) -> Any:
    """The same nested figures, each the median over all runs; values that are not numbers are left out."""
    first = runs[0]
    if isinstance(first, dict):
        found = {key: medians([one[key] for one in runs if key in one]) for key in first if key != "stats"}
        return {key: value for key, value in found.items() if value not in (None, {})}
    if isinstance(first, int | float) and not isinstance(first, bool):
        return round(statistics.median(runs), 4)
    return None


def exit_code(figures: Any) -> int:
    """0 if everything was exact; otherwise 1, and standard error says which figures were not."""
    wrong = list(inexact(figures))
    if wrong:
        print(f"not exact: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def inexact(figures: Any, path: str = "") -> Iterator[str]:
    """The path of names to each place where ``exact`` is false or where there are ``errors``."""
    if isinstance(figures, dict):
        if figures.get("exact") is False or figures.get("errors"):
            yield path or "figures"
        for key, value in figures.items():
            if key != "stats":
                yield from inexact(value, f"{path} {key}".strip())
    elif isinstance(figures, list):
        for number, value in enumerate(figures, 1):
            yield from inexact(value, f"{path} {number}".strip())


def summary(figures: dict[str, Any], path: str = "") -> list[str]:
    """A line for each group of figures."""
    numbers = {
        key: value for key, value in figures.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    lines = [f"{path}: " + ", ".join(f"{key} {value:,}" for key, value in numbers.items())] if numbers else []
    for key, value in figures.items():
        if isinstance(value, dict) and key != "stats":
            lines += summary(value, f"{path} {key}".strip())
    return lines
