"""strace: it makes system calls fail, and it records their order."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess

has_strace = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("strace"), reason="needs root and strace (Debian package strace)"
)


@contextlib.contextmanager
def traced(server: ServerProcess, *options: str) -> Iterator[None]:
    """Attach to all threads of a running server, until the end of the block or of the server."""
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-p", str(server.pid), *options], stderr=subprocess.DEVNULL)
    tasks = Path(f"/proc/{server.pid}/task")
    try:
        wait_until(lambda: _are_traced(tasks, tracer.pid))
        yield
    finally:
        tracer.terminate()
        try:
            tracer.wait(2)
        except subprocess.TimeoutExpired:  # it misses the end of a process while it delays one of the process's calls
            tracer.kill()
            tracer.wait(10)


def _are_traced(tasks: Path, tracer: int) -> bool:
    """Whether all threads of a process are traced, or it has ended already, by the fault that is injected."""
    try:
        return all(f"TracerPid:\t{tracer}" in (task / "status").read_text() for task in tasks.iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return not tasks.exists()  # else only a thread has ended


def inject(server: ServerProcess, fault: str, *paths: Path) -> contextlib.AbstractContextManager[None]:
    """Let system calls of a running server fail; if paths are given, only calls on these files.

    ``when=`` counts the calls of each thread separately.
    """
    on_paths = [word for path in paths for word in ("-P", str(path))]
    return traced(server, *on_paths, "-o", "/dev/null", "-e", f"inject={fault}")


def injecting(fault: str, *paths: Path, trace: Path = Path(os.devnull)) -> tuple[str, ...]:
    """The same for a server from its start, as words before its command. The tracer is not the parent of the server."""
    on_paths = [word for path in paths for word in ("-P", str(path))]
    return ("strace", "-D", "-f", "-qq", *on_paths, "-o", str(trace), "-e", f"inject={fault}")
