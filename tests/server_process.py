"""A real server in a process of its own, for tests that look at it from the outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests import wire

# The product always runs on uvloop; on asyncio's own loop a few things behave differently.
_ON_ASYNCIO = """
import asyncio, functools
cli.run_server = functools.partial(cli.run_server, new_loop=asyncio.new_event_loop)
"""

SMALL_LEDGER = """
from aggregator import consumer, ledger, memtable, store
memtable.MEMTABLE_KEYS, ledger.FANOUT, ledger.SLICE_KEYS, ledger.MAX_SLICE_KEYS = 64, 2, 16, 256
consumer.IDLE_S = 0.01
store.CHECKPOINT_BYTES = 1 << 20
"""
"""Changes that let a few hundred events pass through flushes, merges and checkpoints."""


def changed(changes: str) -> str:
    """A program that makes these changes to the product, and runs it."""
    return f"import sys\nfrom aggregator import cli\n{changes}\nsys.exit(cli.main())"


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Poll until the condition holds. Fails the test when it does not within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.005)


class ServerProcess:
    """``aggregator serve`` on free ports. Options are given as on the command line, without port and db.

    ``prefix`` are words before the command, such as a tracer; ``program`` is Python that runs instead of the product's
    own ``__main__``, after it has broken something.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        db: Path | None = None,
        loop: str = "uvloop",
        prefix: tuple[str, ...] = (),
        program: str | None = None,
    ) -> None:
        self.folder = folder
        self.db = db or folder / "data" / "events.db"
        self.log_path = folder / "server.log"
        self._options = options
        self.prefix = prefix
        if loop == "asyncio":
            program = changed(_ON_ASYNCIO)
        self._program = ("-c", program) if program else ("-m", "aggregator")
        self.process: subprocess.Popen[bytes]
        self.port = 0
        self.silent_port = 0

    def start(self, port: int = 0, silent_port: int = 0) -> ServerProcess:
        """Start it and wait until it is ready."""
        seen = len(self.log)
        assert self.try_to_start(port, silent_port), f"it ended with {self.process.returncode}: {self.log[seen:]}"
        return self

    def try_to_start(self, port: int = 0, silent_port: int = 0) -> bool:
        """Start it and wait until it is ready, or has ended; tell which."""
        seen = len(self.log)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.prefix, sys.executable, *self._program, "serve", "--db", str(self.db),
                    "--port", str(port), "--silent-port", str(silent_port), *self._options,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=Path(__file__).parent.parent,
            )  # fmt: skip
        ready = re.compile(r"ready: acked port [^ ]*:(\d+), silent port (?:off|[^ ]*:(\d+))")
        wait_until(lambda: ready.search(self.log, seen) or self.process.poll() is not None)
        match = ready.search(self.log, seen)
        if match:
            self.port = int(match[1])
            self.silent_port = int(match[2] or 0)
        return bool(match)

    @property
    def log(self) -> str:
        """All that it has written to standard error, in every run."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 20.0) -> int:
        """Wait for its end; return the exit code."""
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """SIGTERM; return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def restart(self) -> None:
        """Start it again on the same ports and database."""
        self.start(self.port, self.silent_port)

    def end(self) -> None:
        """Whatever the test left: nothing may survive it."""
        if hasattr(self, "process") and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def ask(self, command: str) -> wire.Json:
        """The answer to one admin command, on a connection of its own."""
        return wire.exchange(self.port, command.encode() + b"\n")[0]

    def listed(self, topic: str) -> list[wire.Json]:
        """Every stored event of a topic in order of seq, paged through as a reader would."""
        events: list[wire.Json] = []
        after = 0
        while page := self.ask(f"EVENTS {topic} 1000 AFTER {after}")["events"]:
            events += page
            after = page[-1]["seq"]
        return events

    def stored(self, topic: str) -> dict[str, wire.Json]:
        """The same by event_id."""
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
        """Processor time that it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
