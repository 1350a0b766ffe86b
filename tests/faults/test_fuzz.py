"""Coverage-guided fuzzing of the protocol, and every input that it ever found."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT, fuzz_wrap
from tests.harness.fuzz_protocol import check
from tests.harness.fuzz_wrap import WRAPPED_SEEDS
from tests.harness.mutated_lines import SEEDS
from tests.harness.record import RecordFigures
from tests.harness.sizes import FUZZ_S

FOUND_ON_THE_WRAP_PORT = [
    b"\x07\x40\x01\xffPINGGET /" + bytes(83) + b" HTTP/1.1\n",  # HTTP, or texts ended by NUL, depending on the cut
    b"\x07\x40\x01\xffPINGGET /" + 9 * b"__LOG4JS__" + b" HTTP/1.1\n",
]

FOUND = [
    b"\x0a" + b"\0\0\0PROXY TCP4you\n",  # another protocol, or none, depending on the cut
]


@pytest.mark.parametrize("data", [b"\x07\x40\x01\xff" + seed for seed in SEEDS] + FOUND)
def test_what_was_found_once(data: bytes) -> None:
    check(data)


@pytest.mark.parametrize(
    "data", [b"\x07\x40\x01\xff" + seed for seed in WRAPPED_SEEDS + SEEDS] + FOUND_ON_THE_WRAP_PORT
)
def test_what_was_found_once_on_the_wrap_port(data: bytes) -> None:
    fuzz_wrap.check(data)


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="needs atheris: pip install -e '.[fuzz]'")
@pytest.mark.timeout(FUZZ_S + 120)
@pytest.mark.parametrize(("program", "figures"), [("fuzz_protocol", "fuzzing"), ("fuzz_wrap", "fuzzing, wrap port")])
def test_fuzzing_finds_nothing(program: str, figures: str, tmp_path: Path, record_figures: RecordFigures) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.harness.{program}", f"{FUZZ_S}", f"{tmp_path}"],
        capture_output=True, text=True, cwd=ROOT, timeout=FUZZ_S + 100,
    )  # fmt: skip
    found = [path.read_bytes() for path in tmp_path.iterdir() if path.is_file() and path.name != "dictionary"]
    assert (done.returncode, found) == (0, []), done.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    coverage = re.findall(r"cov: (\d+)", done.stderr)
    assert runs, done.stderr[-1000:]
    assert int(runs[1]) > 1000
    assert int(coverage[-1]) > 100, "it is guided by what the code does"
    record_figures(figures, rounds=int(runs[1]), fuzzed_s=FUZZ_S, coverage=int(coverage[-1]))
