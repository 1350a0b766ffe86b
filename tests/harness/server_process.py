"""A real server in its own process, for tests that look at it from the outside."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.harness import ROOT, activation, fork_server, wire
from tests.harness import changes as product_changes
from tests.harness.changes import Change
from tests.harness.fork_server import ForkedProcess
from tests.harness.polling import wait_until


class ServerProcess:
    """``aggregator serve`` on free ports. Options are given as on the command line, without the ports and the database.

    Its events are in a file in its folder, or in the database at ``url``.
    ``prefix`` are words before the command, such as a tracer; ``changes`` are made to the product before it starts.
    Listening sockets may be ``passed_in``, by the names of their ports.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        db: Path | None = None,
        url: str = "",
        loop: str = "uvloop",
        prefix: tuple[str, ...] = (),
        changes: Sequence[Change] = (),
        passed_in: Mapping[str, socket.socket] | None = None,
    ) -> None:
        self.folder = folder
        self.db = db or folder / "data" / "events.db"
        self.url = url
        self.log_path = folder / "server.log"
        self._options = options
        self._passed_in = passed_in or {}
        self.prefix = (*prefix, *activation.passing(self._passed_in))
        self._changes = [*([product_changes.on_asyncio] if loop == "asyncio" else []), *changes]
        self.process: ForkedProcess | subprocess.Popen[bytes]
        self.port = 0
        self.silent_port = 0
        self.wrap_port = 0
        self.tls_port = 0
        self.tls_silent_port = 0

    def start(self, port: int = 0, silent_port: int = 0) -> ServerProcess:
        """Start it and wait until it is ready. Raises AssertionError if it ends instead."""
        seen = len(self.log)
        assert self.try_to_start(port, silent_port), f"it ended with {self.process.returncode}: {self.log[seen:]}"
        return self

    def try_to_start(self, port: int = 0, silent_port: int = 0) -> bool:
        """Start it and wait until it is ready or has ended; return whether it is ready."""
        seen = len(self.log)
        numbers = {
            "--wrap-port": self.wrap_port, "--tls-port": self.tls_port, "--tls-silent-port": self.tls_silent_port,
        }  # fmt: skip
        same = [word for option, number in numbers.items() if number for word in (option, str(number))]
        with self.log_path.open("ab") as log:
            words = [
                "serve", "--db", self.url or str(self.db), "--port", str(port), "--silent-port", str(silent_port),
                *self._options, *same,
            ]  # fmt: skip
            self.process = self._execute(words, log) if self.prefix else self._fork(words, log)
        ready = re.compile(
            r"ready: acked port [^ ]*:(\d+), silent port (?:off|[^ ]*:(\d+))(?:, wrap port [^ ]*:(\d+))?"
        )
        wait_until(lambda: ready.search(self.log, seen) or self.process.poll() is not None)
        match = ready.search(self.log, seen)
        if match:
            self.port = int(match[1])
            self.silent_port = int(match[2] or 0)
            self.wrap_port = int(match[3] or 0)
            self.tls_port = self.port_of("TLS")
            self.tls_silent_port = self.port_of("silent TLS")
        return bool(match)

    def _fork(self, words: list[str], log: IO[bytes]) -> ForkedProcess:
        return fork_server.start(words, [change.__name__ for change in self._changes], log, _environment())

    def _execute(self, words: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Run it through a program that executes it, such as a tracer."""
        arguments = product_changes.arguments(self._changes)
        return subprocess.Popen(
            [*self.prefix, sys.executable, *arguments, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            cwd=ROOT, env=_environment(), pass_fds=[one.fileno() for one in self._passed_in.values()],
        )  # fmt: skip

    @property
    def log(self) -> str:
        """Everything that it has written to standard error, in all its runs."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def wait_for_log(self, text: str) -> None:
        """Wait until the log has this text. A thread writes the log, so a line may come after what it is about."""
        wait_until(lambda: text in self.log)

    def port_of(self, name: str) -> int:
        """The number of a port that is off by default, as the log last named it; 0 if the port is off."""
        found = re.findall(rf"ready: .*, {name} port [^ ]*:(\d+)", self.log)
        return int(found[-1]) if found else 0

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for its end; return the exit code."""
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """Send SIGTERM; return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def restart(self) -> None:
        """Start it again on the same ports and database."""
        self.start(self.port, self.silent_port)

    def end(self) -> None:
        """Kill it if the test has left it running: no server may outlive its test."""
        if hasattr(self, "process") and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def ask(self, command: str) -> wire.Json:
        """The answer to one admin command, on its own connection."""
        return wire.exchange(self.port, command.encode() + b"\n")[0]

    def has_checkpointed_since(self, moment: float) -> bool:
        """Whether a checkpoint has ended after this moment of ``time.monotonic()``, whether it succeeded or not."""
        asked = time.monotonic()
        return bool(asked - self.ask("HEALTH")["checks"]["checkpoint_age_s"] > moment)

    def listed(self, topic: str) -> list[wire.Json]:
        """Every stored event of a topic in order of seq, read page by page."""
        events: list[wire.Json] = []
        answer = {"seq": 0, "truncated": True}
        while answer.get("events") or answer.get("truncated"):
            answer = self.ask(f"EVENTS {topic} 1000 AFTER {answer['seq']}")
            assert answer["status"] == "ok", answer
            events += answer["events"]
        return events

    def stored(self, topic: str) -> dict[str, wire.Json]:
        """The stored events of a topic by event_id."""
        listed = self.listed(topic)
        events = {event["event_id"]: event for event in listed}
        assert len(events) == len(listed), "stored twice"
        return events

    @property
    def rss_bytes(self) -> int:
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @property
    def cpu_s(self) -> float:
        """The processor time that it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


StartServer = Callable[..., ServerProcess]
"""The type of the fixtures ``new_server`` and ``start_server``; they take ServerProcess's arguments but the folder."""


def _environment() -> dict[str, str]:
    """Our environment without the variables of the fault tests: a server warns of each that it does not know."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AGGREGATOR_FAULTS")}
