"""The program of a peer: found where ``bench/peers/install`` unpacked it, started on loopback, stopped by its pid."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.peers.peer import NotRun

UNPACKED: Final = Path(os.environ.get("PEERS_DIR", "/opt/aggregator-peers"))

START_S: Final = 30.0
STOP_S: Final = 60.0
"""Long, because a database may write a last checkpoint of gigabytes."""


def unpacked(package: str) -> Path:
    """The folder of this Debian package, whose name may be a pattern. Raises NotRun."""
    for folder in sorted(UNPACKED.glob(package)):
        return folder
    raise NotRun(f"no {package} in {UNPACKED}: run bench/peers/install")


def libraries(folder: Path) -> dict[str, str]:
    """The environment in which the programs of an unpacked package find the libraries unpacked with it."""
    found = [*folder.glob("usr/lib/*-linux-*"), *folder.glob("lib/*-linux-*"), *folder.glob("usr/lib/syslog-ng")]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, found))}


def installed(*packages: str) -> dict[str, str]:
    """The versions of these Python packages. Raises NotRun."""
    try:
        return {package: importlib.metadata.version(package) for package in packages}
    except importlib.metadata.PackageNotFoundError as missing:
        raise NotRun(f"no Python package {missing.name}: install the extra `peers`") from None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(
    command: list[str], log: Path, port: int, stop: signal.Signals = signal.SIGTERM, **popen: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program, wait until it accepts connections on this port, and stop it at the end. Raises NotRun."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **popen)
    try:
        _wait(lambda: _accepts(port), process, command[0], log)
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], program: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip().splitlines()
            raise NotRun(f"{Path(program).name} did not start: {' / '.join(said[-2:])}")
        time.sleep(0.02)


def _accepts(port: int) -> bool:
    with socket.socket() as connection:
        # While no program listens there, the kernel may give us this very port and connect us to ourselves.
        return connection.connect_ex(("127.0.0.1", port)) == 0 and connection.getsockname()[1] != port
