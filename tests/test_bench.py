"""The bench does what it says, in small: its workload is what it claims, and its result file has every figure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from bench import workload
from tests.server_process import ServerProcess

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("ids", ["random", "ordered"])
def test_a_workload_has_the_duplicates_it_claims_and_can_be_made_again(ids: workload.IdKind) -> None:
    work = workload.generate(4000, 0.25, 4, ids)
    lines = [line for part in work.lines for line in part]
    keys = {(one["topic"], one["event_id"]) for one in map(orjson.loads, lines)}
    assert len(lines) == work.count == 4000
    assert len(keys) == work.unique
    assert 0.2 < 1 - work.unique / work.count < 0.3
    assert workload.generate(4000, 0.25, 4, ids) == work


@pytest.mark.parametrize(("ids", "grows"), [("random", False), ("ordered", True)])
def test_ordered_ids_grow_and_random_ones_do_not(ids: workload.IdKind, grows: bool) -> None:
    (lines,) = workload.generate(3000, 0, 1, ids).lines
    found = [orjson.loads(line)["event_id"][:13] for line in lines]
    assert (found == sorted(found)) is grows


@pytest.mark.parametrize("own", [True, False])
def test_load_checks_and_measures_everything(server: ServerProcess, tmp_path: Path, own: bool) -> None:
    output = tmp_path / "result.json"
    to = [] if own else ["--to", f"127.0.0.1:{server.port}"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "load", "--events", "5000", "--runs", "1", "--rate", "1000", *to,
         "--folder", str(tmp_path), "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert set(result) == {"bench", "measured_at", "commit", "machine", "versions", "settings", "figures"}
    (run,) = result["figures"]["runs"]
    assert run["exact"] is True
    assert run["stored"] == run["expected_stored"]
    assert run["stored"] + run["duplicate"] == 5000
    assert run["errors"] == run["latency"]["errors"] == 0
    assert 0 < run["latency"]["p50_ms"] <= run["latency"]["p99_ms"]
    assert run["of_ceiling"] > 0
    assert ("server_cpu_us_per_event" in run) is own
