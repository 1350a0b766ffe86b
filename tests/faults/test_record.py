"""The result file of the fault tests holds the measurements of each test, and says which tests failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT

_TESTS = '''
import pytest

@pytest.mark.fault
@pytest.mark.parametrize("stored", [2, 3])
def test_measures(stored, record_figures):
    """T901."""
    record_figures("two rounds", rounds=2, stored=stored, lost=0, recovery_s=stored / 10)

@pytest.mark.fault
def test_breaks(record_figures):
    """T901 and T902."""
    record_figures("one round", lost=1)
    assert not "lost"

@pytest.mark.fault
def test_cannot_run_here():
    """T903."""
    pytest.skip("no such tool")

def test_is_no_fault_test():
    """Nothing of this one is written."""
'''


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_result_file_has_what_each_test_measured_and_how_it_ended(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_it.py").write_text(_TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = fault\n")
    path = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.harness.record", "-n", workers, tmp_path],
        env=os.environ | {"AGGREGATOR_FAULTS_RESULT": str(path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1, done.stdout + done.stderr

    result = json.loads(path.read_text())
    assert {"machine", "versions", "commit", "settings"} <= result.keys()
    assert result["figures"]["faults"] == {
        "T901": {"passed": 2, "failed": 1, "rounds": 5, "stored": 5, "lost": 1, "recovery_s": 0.3},
        "T902": {"failed": 1, "rounds": 1, "lost": 1},
        "T903": {"skipped": 1},
    }
    reasons = {name.partition("::")[2]: test.get("reason") for name, test in result["figures"]["tests"].items()}
    assert reasons.keys() == {"test_measures[2]", "test_measures[3]", "test_breaks", "test_cannot_run_here"}
    assert "lost" in reasons["test_breaks"]
    assert "no such tool" in reasons["test_cannot_run_here"]
