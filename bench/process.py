"""A real server, started for a run in a folder of its own, and watched from outside."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final

import orjson

from aggregator.client import ask

START_S: Final = 30.0
FILL_S: Final = 300.0


def cpu_s(pid: int) -> float:
    """User and system time of a process so far (proc(5), stat: fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Server:
    """``aggregator serve`` on a free port. ``cpu_s`` and ``rss_bytes`` are those of this process alone."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._log = folder / "server.log"
        self._command = [
            sys.executable, "-m", "aggregator", "serve", "--port", "0", "--silent-port", "off",
            "--db", str(folder / "events.db"), *options,
        ]  # fmt: skip

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        seen = len(self._log.read_text()) if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        ready = re.compile(r"acked port 127\.0\.0\.1:(\d+)")
        while not (match := ready.search(self._log.read_text(), seen)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start: {self._log.read_text()}")
            time.sleep(0.01)
        self.port = int(match[1])
        tls = re.search(r" TLS port 127\.0\.0\.1:(\d+)", self._log.read_text()[match.start() :])
        self.tls_port = int(tls[1]) if tls else 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def pause(self) -> None:
        """Stop the process (SIGSTOP) until ``resume``."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process go on."""
        self._process.send_signal(signal.SIGCONT)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; return the exit code."""
        self._process.send_signal(number)
        return self._process.wait(30)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.end() and not error:
            raise SystemExit(f"the server ended badly: {self._log.read_text()}")

    def wait_until_filled(self) -> float:
        """Wait until the filter has all keys again after a start; return the seconds it took."""
        started = time.monotonic()
        while orjson.loads(asyncio.run(ask("127.0.0.1", self.port, "STATS", START_S)))["ledger"]["filter"] < 1:
            if time.monotonic() - started > FILL_S:
                raise SystemExit(f"the filter is not filled after {FILL_S} s")
            time.sleep(0.1)
        return round(time.monotonic() - started, 1)

    @property
    def cpu_s(self) -> float:
        """User and system time so far."""
        return cpu_s(self._process.pid)

    @property
    def rss_bytes(self) -> int:
        """Memory in use now (proc(5), statm: field 2)."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
