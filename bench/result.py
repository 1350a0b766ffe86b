"""A result file: one JSON object with the machine, the versions, the commit and every figure.

``results/<machine>/<what>.json`` is the record of that machine. A new record replaces the old one, which git keeps.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results"

# What the name of a processor has besides family and model: makers, marks, numbers of cores, frequencies.
_NOT_A_MODEL: Final = re.compile(r"\((?:r|tm)\)|\b(?:intel|amd|cpu|processor|\d+-core)\b|@.*", re.IGNORECASE)


def describe(what: str, settings: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """The whole content of a result file."""
    return {
        "bench": what,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short=12", "HEAD") + ("+changes" if _changed() else ""),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
            "kernel": platform.release(),
        },
        "versions": {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            **{name: version(name) for name in ("aggregator", "uvloop", "orjson", "aiosqlite")},
        },
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),  # the servers have the same
        "settings": settings,
        "figures": figures,
    }


def write(result: dict[str, Any], path: Path | None) -> None:
    """Write a result to a file, by default as the record of this machine; ``-`` is standard output."""
    text = json.dumps(result, indent=2) + "\n"
    path = path or RESULTS / machine_name(_cpu()) / f"{result['bench']}.json"
    if path == Path("-"):
        sys.stdout.write(text)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def machine_name(cpu: str) -> str:
    """The name of a machine's folder: the part of its processor's name that tells it from others (``epyc-7763``)."""
    return "-".join(re.findall(r"[a-z0-9]+", _NOT_A_MODEL.sub(" ", cpu).lower())) or "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _changed() -> bool:
    """Whether the working tree differs from the commit. Results that other benches have just written do not count."""
    return bool(_git("status", "--porcelain", "--", ":(top)", ":(top,exclude)bench/results"))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
