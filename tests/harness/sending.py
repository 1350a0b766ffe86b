"""``aggregator send`` as its users run it: a program with files, pipes, an exit code and a standard error."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tests.harness import ROOT
from tests.harness.polling import DEADLINE_S
from tests.harness.server_process import ServerProcess


def command(port: int, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "aggregator", "send", "--to", f"127.0.0.1:{port}", *map(str, arguments)]


class Outcome:
    """The outcome of a run: exit code, the lines on standard error, the counts of the summary."""

    def __init__(self, code: int, errors: bytes) -> None:
        self.code = code
        self.lines = errors.decode().splitlines()
        self.counts: dict[str, int] = {}
        if self.lines and (summary := re.match(r"sent (\d+): (.*) in [\d.]+ s \([\d,]+/s\)$", self.lines[-1])):
            self.lines.pop()
            counts = dict(part.split() for part in summary[2].split(", "))
            self.counts = {"sent": int(summary[1]), **{name: int(count) for name, count in counts.items()}}
        assert "Traceback" not in errors.decode()

    def has(self, **counts: int) -> bool:
        """Whether these are all the counts that are not 0."""
        return {name: count for name, count in self.counts.items() if count} == counts


def run(port: int, *arguments: str | Path, stdin: bytes | None = b"", **options: Any) -> Outcome:
    done = subprocess.run(
        command(port, *arguments), input=stdin, capture_output=True, cwd=ROOT, timeout=100, check=False, **options
    )
    assert done.stdout == b""
    return Outcome(done.returncode, done.stderr)


class Running:
    """A run that continues until it is told to stop."""

    def __init__(self, port: int, *arguments: str | Path, stderr: Path) -> None:
        self._stderr = stderr
        with stderr.open("wb") as errors:
            self.process = subprocess.Popen(command(port, *arguments), stdin=subprocess.PIPE, stderr=errors, cwd=ROOT)
        assert self.process.stdin
        self.stdin: IO[bytes] = self.process.stdin

    @property
    def errors(self) -> str:
        return self._stderr.read_text()

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> Outcome:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> Outcome:
        code = self.process.wait(2 * DEADLINE_S)
        return Outcome(code, self._stderr.read_bytes())


Start = Callable[..., Running]
"""The type of the fixture ``start``: it starts a run with the port and these arguments, and ends it with its test."""


def messages(server: ServerProcess, topic: str = "t") -> list[str]:
    """The message texts stored under a topic, in the order in which they were stored."""
    return [event["payload"]["message"] for event in server.listed(topic)]


def has_stored(server: ServerProcess, count: int) -> Callable[[], bool]:
    return lambda: server.ask("STATS")["stored_total"] >= count
