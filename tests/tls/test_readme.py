"""README.md's section on TLS is true: from nothing to clients with certificates."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT, wire

(PAGE,) = re.findall(r"^## TLS\n.*?^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_from_nothing_to_client_certificates(tmp_path: Path) -> None:
    lines = [line for line in PAGE.replace("\\\n", "").splitlines() if not line.startswith("#")]
    assert len(lines) <= 10
    program = tmp_path / "bin" / "aggregator"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m aggregator "$@"\n')
    program.chmod(0o755)
    here = PAGE.replace("logs.example", "localhost").replace("6514", str(wire.free_port()))
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{program.parent}:{os.environ['PATH']}", "AGGREGATOR_PORT": "0",
        "AGGREGATOR_SILENT_PORT": "off", "AGGREGATOR_TLS_HOST": "127.0.0.1",
    }  # fmt: skip
    output = tmp_path / "output"  # a file, so that nothing waits for a server that is left running
    with output.open("wb") as file:
        shell = subprocess.Popen(
            ["bash", "-ec", f"{here}\nkill %1; wait %1"], cwd=tmp_path, env=environment, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
        try:
            assert shell.wait(60) == 0, output.read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert "sent 1: stored 1," in output.read_text()
