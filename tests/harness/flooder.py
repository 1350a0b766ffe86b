"""A client that sends as fast as it can. It has its own process, so that it slows down nothing but the server.

``python -m tests.harness.flooder PORT NAME SECONDS RATE`` keeps thousands of events in flight for SECONDS, at RATE
events a second or, if RATE is 0, as fast as it can. Then it waits for the outstanding replies, and prints how many
events it sent and how many were answered. After four million events it repeats the same ids, so that no disk fills up.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from types import TracebackType

from tests.harness import ROOT

_BURST = 500
_IN_FLIGHT = 20_000
_IDS = 4_000_000


def flood(port: int, name: str, seconds: float, rate: float) -> tuple[int, int]:
    line = (
        '{"topic":"flood","event_id":"%s-%d","timestamp":"2026-11-22T10:00:00Z","source":"flooder",'
        '"payload":{"text":"some words, as a log line has them","number":%d}}\n'
    )
    sent = answered = 0
    start = time.monotonic()
    pending = b""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.setblocking(False)
        while True:
            passed = time.monotonic() - start
            flooding = passed < seconds
            if not pending and flooding and sent - answered < _IN_FLIGHT and (not rate or sent < passed * rate):
                pending = "".join([line % (name, i % _IDS, i) for i in range(sent, sent + _BURST)]).encode()
                sent += _BURST
            progress = 0
            try:
                progress = connection.send(pending) if pending else 0
                pending = pending[progress:]
            except BlockingIOError:
                pass
            try:
                replies = connection.recv(1 << 20)
                if not replies:
                    return sent, answered
                answered += replies.count(b"\n")  # not decoded: the stored events show whether the replies were acks
                progress += len(replies)
            except BlockingIOError:
                pass
            if not flooding and not pending and answered == sent:
                return sent, answered
            if not progress:
                time.sleep(0.001)


class Flooder:
    """One such client, in its process."""

    def __init__(self, port: int, name: str, seconds: float, rate: float = 0) -> None:
        self._seconds = seconds
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.flooder", f"{port}", name, f"{seconds}", f"{rate}"],
            stdout=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip

    def __enter__(self) -> Flooder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> tuple[int, int]:
        """Wait for its end; return how many events it sent, and how many were answered."""
        output, _ = self._process.communicate(timeout=self._seconds + 100)
        sent, answered = output.split()
        return int(sent), int(answered)


if __name__ == "__main__":
    print(*flood(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))
