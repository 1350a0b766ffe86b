"""``python -m bench engine`` on a small scale: every bar is measured, exact, drawn and put into a table."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.engine import BARS, MOST
from bench.tables import TABLES
from tests.harness import ROOT
from tests.harness.postgres import new_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL may write to."""
    made = new_folder()
    yield made
    shutil.rmtree(made)


@pytest.mark.postgres
@pytest.mark.timeout(400)  # it starts three clusters and a dozen servers
def test_every_bar_is_measured(postgres_installed: None, tmp_path: Path, folder: Path) -> None:
    output = tmp_path / "engine.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "engine", "--events", "5000", "--server-events", "5000", "--commits", "50",
         "--keys", "2000", "--runs", "1", "--folder", str(folder), "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, timeout=350,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    figures = record["figures"]
    assert set(figures["ratios"]) == {*BARS, *MOST}
    assert [point["keys"] for point in figures["grown"]] == [2000]
    (run,) = figures["runs"]
    for name in ("fresh_10000", "fresh_1000", "standby_10000", "lanes_10000", "server"):
        for which in run[name].values():
            if isinstance(which, dict):
                assert which["exact"] is True
    table = TABLES["engine"](record)
    assert all(f"≥ {bar}" in table for bar in BARS.values())
    if find_spec("matplotlib"):
        subprocess.run([sys.executable, "-m", "bench", "plot", output], cwd=ROOT, check=True, timeout=100)
        assert output.with_suffix(".svg").read_text().count("<svg") == 1
