"""Two machines, and a cable between them that can be cut and throttled: network namespaces and a veth pair.

Nothing outside these namespaces is touched. Their loopback works, so the server can always be asked from inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

SERVER_ADDRESS = "10.99.0.1"
CLIENT_ADDRESS = "10.99.0.2"

_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


class Network:
    """A server's machine, a client's machine, and the link between them."""

    def __init__(self) -> None:
        mark = f"aggregator-{os.getpid()}-{next(_numbers)}"
        self.server = f"{mark}-server"
        self.client = f"{mark}-client"

    def make(self) -> str | None:
        """Make the network; if that is not possible here, return why."""
        try:
            for name in (self.server, self.client):
                _run("ip", "netns", "add", name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", self.server, "link", "add", "link0", "type", "veth", "peer", "link0", "netns", self.client)
            for name, address in ((self.server, SERVER_ADDRESS), (self.client, CLIENT_ADDRESS)):
                _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "link0")
                _run("ip", "-n", name, "link", "set", "link0", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.remove()
            return str(getattr(error, "stderr", "") or error).strip()
        return None

    def remove(self) -> None:
        for name in (self.server, self.client):
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def on_server(self) -> tuple[str, ...]:
        """The words to put before a command so that it runs on the server's machine."""
        return ("ip", "netns", "exec", self.server)

    def on_client(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.client)

    def cut(self) -> None:
        """Let no packet through from now on. Neither machine is notified."""
        self._set_link("down")

    def mend(self) -> None:
        self._set_link("up")

    def _set_link(self, state: str) -> None:
        # Only the client's end is set down. The server's end keeps its address and route, as if the cut were far away.
        _run("ip", "-n", self.client, "link", "set", "link0", state)

    def throttle(self, rate: str) -> None:
        """Limit what the server sends to this rate."""
        self._shape("add", rate, "4kb")

    def unthrottle(self) -> None:
        # Not removed: that would drop the packets that wait in the qdisc, and they would have to be sent again.
        self._shape("change", "1gbit", "1mb")

    def _shape(self, verb: str, rate: str, burst: str) -> None:
        _run(
            "tc", "-n", self.server, "qdisc", verb, "dev", "link0", "root",
            "tbf", "rate", rate, "burst", burst, "latency", "5s",
        )  # fmt: skip

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Sockets made here, and threads started here, belong to that machine."""
        with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{name}").open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
