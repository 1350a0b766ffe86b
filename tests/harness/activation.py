"""A service manager for tests: listening sockets that outlive the server, and the messages the server sends to it."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.harness.polling import DEADLINE_S

_PROGRAM = """
import fcntl, os, sys
descriptors, names, command = sys.argv[1].split(), sys.argv[2], sys.argv[3:]
# First above those they are moved to, so that none is overwritten before its turn.
high = [fcntl.fcntl(int(descriptor), fcntl.F_DUPFD, 100) for descriptor in descriptors]
for number, descriptor in enumerate(high):
    os.dup2(descriptor, 3 + number)
    os.close(descriptor)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(descriptors)), LISTEN_FDNAMES=names)
os.execvp(command[0], command)
"""


def passing(sockets: Mapping[str, socket.socket]) -> tuple[str, ...]:
    """The words to put before a server's command to pass it these sockets by name, as systemd does."""
    if not sockets:
        return ()
    descriptors = " ".join(str(one.fileno()) for one in sockets.values())
    return (sys.executable, "-c", _PROGRAM, descriptors, ":".join(sockets))


@contextlib.contextmanager
def listening(*names: str) -> Iterator[dict[str, socket.socket]]:
    """A listening socket for each name."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024)) for name in names}


class NotifySocket:
    """The socket at which a manager receives messages (sd_notify(3)): at a path, or in the abstract namespace."""

    def __init__(self, folder: Path, abstract: bool) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(DEADLINE_S)
        self.variable = f"@{folder}/notify" if abstract else f"{folder}/notify"
        self._socket.bind(self.variable.replace("@", "\0", 1))
        self.told: list[str] = []

    def wait_for(self, line: str) -> None:
        """Read messages until this line has come."""
        while True:
            lines = self._socket.recv(65536).decode().split("\n")
            self.told += lines
            if line in lines:
                return

    def rest(self) -> list[str]:
        """The messages that have come since, without waiting."""
        self._socket.setblocking(False)
        lines: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                lines += self._socket.recv(65536).decode().split("\n")
        self._socket.settimeout(DEADLINE_S)
        return lines

    def close(self) -> None:
        self._socket.close()
