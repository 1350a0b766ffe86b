"""Run ``aggregator`` with these words to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.harness import ROOT

Done = subprocess.CompletedProcess[str]


def aggregator(
    *words: str,
    cwd: Path = ROOT,
    prefix: tuple[str, ...] = (),
    shell: str = "",
    environment: Mapping[str, str] | None = None,
) -> Done:
    """Run it in this folder. ``shell`` is appended: redirections, as in ``>/dev/full`` or ``2>&-``, or a pipe."""
    command = [*prefix, sys.executable, "-m", "aggregator", *words]
    if shell:
        command = ["bash", "-c", f'"$@" {shell}', "bash", *command]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
    )  # fmt: skip


def assert_one_line(done: Done, code: int, *words: str) -> None:
    """Assert that it ended with this code and wrote one line, which contains these words, to standard error."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("aggregator")
    for word in words:
        assert word in done.stderr, done.stderr
