"""A server whose standard error is a pipe or a terminal, which the test may or may not read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.harness import ROOT, wire
from tests.harness import changes as product_changes
from tests.harness.changes import Change
from tests.harness.polling import DEADLINE_S, wait_until

READY: Final = re.compile(r"ready: acked port [^ ]*:(\d+), silent port (?:off|[^ ]*:(\d+))")


class Channel:
    """Two descriptors. What is written to ``its`` can be read from ``ours`` when the test wants it."""

    def __init__(self, ours: int, its: int) -> None:
        self.ours = ours
        self.its = its
        self._seen = b""

    @classmethod
    def pipe(cls) -> Channel:
        return cls(*os.pipe())

    @classmethod
    def terminal(cls) -> Channel:
        ours, its = pty.openpty()
        tty.setraw(its)
        return cls(ours, its)

    def fill(self) -> None:
        """Write until it accepts no more, so that the next writer has to wait."""
        fd = os.open(f"/proc/self/fd/{self.its}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            size = 4096
            while size:
                try:
                    os.write(fd, b"-" * (size - 1) + b"\n")
                except BlockingIOError:
                    # A terminal passes on what it has, and accepts more in a moment.
                    if not select.select([], [fd], [], 0.2)[1]:
                        size //= 64
        finally:
            os.close(fd)

    def halt(self) -> None:
        """Pause the terminal's output, as Ctrl-S does."""
        termios.tcflow(self.its, termios.TCOOFF)

    def go_on(self) -> None:
        """Resume the terminal's output, as Ctrl-Q does."""
        termios.tcflow(self.its, termios.TCOON)

    def narrow(self) -> None:
        """Make a pipe so small that a few lines fill it, and let writes to it fail instead of waiting."""
        fcntl.fcntl(self.its, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(self.its, False)

    def read_until(self, pattern: str | re.Pattern[str]) -> re.Match[str]:
        """Read until this pattern has come; return the match, whose ``string`` is all that was read."""
        deadline = time.monotonic() + DEADLINE_S
        while not (match := re.search(pattern, self.text)):
            assert self._read(deadline - time.monotonic()), f"no {pattern!r} in {self.text[-2000:]!r}"
        return match

    def read_all(self) -> str:
        """Read what is there and what still comes, until every writer has closed it."""
        with contextlib.suppress(OSError):
            os.close(self.its)
        while self._read(DEADLINE_S):
            pass
        return self.text

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self.ours], [], [], max(0.0, timeout_s))[0]:
            return False
        with contextlib.suppress(OSError):  # the end of a terminal
            if data := os.read(self.ours, 65536):
                self._seen += data
                return True
        return False

    @property
    def text(self) -> str:
        """Everything that was read so far."""
        return self._seen.decode()

    def close(self) -> None:
        for fd in (self.ours, self.its):
            with contextlib.suppress(OSError):
                os.close(fd)


class ServerAt:
    """``aggregator serve`` that writes its log to a channel, or to any other descriptor."""

    def __init__(
        self,
        folder: Path,
        stderr: int,
        *options: str,
        port: int = 0,
        changes: Sequence[Change] = (),
        control: bool = False,
    ) -> None:
        """With ``control``, ``stderr`` is a terminal, and the server is its session leader, as a login shell is."""
        self.db = folder / "data" / "events.db"
        self.port = port
        self.silent_port = 0
        program = (sys.executable, *product_changes.arguments(changes))
        command = [*program, "serve", "--db", str(self.db), "--port", str(port), "--silent-port", "0"]
        command += options
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command] if control else command,
            stdin=stderr if control else subprocess.DEVNULL,  # where setsid looks for the terminal
            stdout=subprocess.DEVNULL, stderr=stderr, cwd=ROOT,
        )  # fmt: skip

    def ready(self, channel: Channel) -> ServerAt:
        """Wait until it reports that it is ready."""
        match = channel.read_until(READY)
        self.port, self.silent_port = int(match[1]), int(match[2] or 0)
        return self

    def answering(self) -> ServerAt:
        """Wait until it answers on the port it was given, whatever happens to its log."""
        wait_until(self._answers)
        return self

    def _answers(self) -> bool:
        assert self.process.poll() is None
        with contextlib.suppress(ConnectionRefusedError):
            return bool(wire.exchange(self.port, b"PING\n")[0]["pong"])
        return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
