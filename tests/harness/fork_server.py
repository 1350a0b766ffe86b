"""Servers that start quickly: a process that has imported the product forks for each of them.

Starting Python and importing the product takes 0.3 s of processor time, which was half of the time of all tests. A
forked server runs the same command line in its own process, with its own descriptors, environment and exit code.

Between the tests and each server stands a keeper, also a fork: it waits for the server and reports its exit status.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Final, NoReturn

from tests.harness import ROOT

REQUEST_BYTES: Final = 1 << 20


class ForkedProcess:
    """The counterpart of ``subprocess.Popen`` for a forked server."""

    def __init__(self, pid: int, keeper: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._keeper = keeper
        self._looking = threading.Lock()  # a test may wait for the end while its background work looks for a start

    def poll(self) -> int | None:
        """The exit code, if it has ended; for a signal that has ended it, the negative number of the signal."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("aggregator", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # its keeper has not reported its end yet
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout_s: float | None) -> int | None:
        poll = select.poll()
        with self._looking:
            if self.returncode is not None:
                return self.returncode
            poll.register(self._keeper, select.POLLIN)
        if poll.poll(None if timeout_s is None else max(0, timeout_s) * 1000):  # meanwhile others may look and signal
            with self._looking:
                if self.returncode is None:
                    self.returncode = os.waitstatus_to_exitcode(int(self._keeper.recv(16)))
                    self._keeper.close()
        return self.returncode


def start(words: Sequence[str], changes: Sequence[str], log: IO[bytes], environment: dict[str, str]) -> ForkedProcess:
    """Run ``aggregator`` with these words after making these changes to it; its output goes to ``log``."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with open(os.devnull, "rb") as nothing, its:
        request = {"words": words, "changes": changes, "environment": environment, "folder": str(ROOT)}
        socket.send_fds(
            _fork_server(), [json.dumps(request).encode()], [nothing.fileno(), log.fileno(), log.fileno(), its.fileno()]
        )
    return ForkedProcess(int(ours.recv(16)), ours)


@functools.cache
def _fork_server() -> socket.socket:
    """The fork server of this test process; it ends together with this process."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.fork_server", str(its.fileno())], pass_fds=[its.fileno()], cwd=ROOT
        )
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def _serve(requests: socket.socket) -> None:
    """Fork for each request, until the test process has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is meant for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the keepers
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 4)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            _keep(json.loads(request), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _keep(request: dict[str, object], descriptors: list[int]) -> NoReturn:
    """Fork the server, report its pid, wait for its end, and report its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *standard, reports = descriptors
    pid = os.fork()
    if pid == 0:
        os.close(reports)
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
            os.close(descriptor)
        _run(**request)  # type: ignore[arg-type]
    for descriptor in standard:
        os.close(descriptor)
    with socket.socket(fileno=reports) as told:
        told.sendall(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        told.sendall(str(status).encode())
    os._exit(0)


def _run(words: list[str], changes: list[str], environment: dict[str, str], folder: str) -> NoReturn:
    from aggregator import cli
    from tests.harness import changes as product_changes

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["aggregator", *words]
    for change in changes:
        getattr(product_changes, change)()
    sys.exit(cli.main())


if __name__ == "__main__":
    with contextlib.suppress(ImportError):  # an extra
        import psycopg  # noqa: F401

    import tests.harness.changes  # noqa: F401 (imported once, for all servers)

    _serve(socket.socket(fileno=int(sys.argv[1])))
