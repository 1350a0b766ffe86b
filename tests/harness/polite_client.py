"""Clients that do everything right while others do not. They measure how long they wait for their acks.

The waits depend on the machine, and on its other load at that moment. So they are compared with the waits, at the same
moment, of clients of another server that is not under attack.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tests.harness.account import Account
from tests.harness.background import FINISH_S, Background
from tests.harness.wire import Peer

FLOOR_S: Final = 2.0
"""The time that a busy machine may add to the waits at one of two servers and not at the other: forty times what two
busy cores added. A fault that holds up other clients makes them wait until it is over, for four seconds or more."""


class PoliteClient:
    """Sends one event at a time, waits for its ack and notes how long the ack took."""

    def __init__(self, account: Account, port: int, name: str, host: str = "127.0.0.1") -> None:
        self.name = name
        self.waited_s: list[float] = []
        self._account = account
        self._peer = Peer(port, host=host)
        self._enough = False
        self._work = Background(self._run, name)

    def _run(self) -> None:
        with self._peer as peer:
            while not self._enough:
                self._ask(peer, f"{self.name}-{len(self.waited_s)}")

    def _ask(self, peer: Peer, name: str) -> None:
        line = self._account.line(name, '{"n":"NAME"}')
        started = time.monotonic()
        reply = peer.ask(line)
        self.waited_s.append(time.monotonic() - started)
        assert (reply["status"], reply["event_id"]) == ("stored", name), reply
        self._account.heard(name, reply)

    def check(self) -> None:
        """Raise any exception that it has raised so far."""
        self._work.check()

    def finish(self) -> None:
        """Let it receive its last ack, and raise any exception that it has raised."""
        self._enough = True
        self._work.finish()


@contextmanager
def polite_clients(account: Account, port: int, count: int, name: str = "polite") -> Iterator[list[PoliteClient]]:
    """This many polite clients; at the end each must have received all its acks."""
    clients = [PoliteClient(account, port, f"{name}{number}") for number in range(count)]
    yield clients
    for client in clients:
        client.finish()


def wait_for_acks(clients: Sequence[PoliteClient], seconds: float) -> None:
    """Wait for this long, and until each client has received ten acks."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or any(len(client.waited_s) < 10 for client in clients):
        for client in clients:
            client.check()
        assert time.monotonic() < deadline + FINISH_S, "a polite client starves"
        time.sleep(0.01)


def percentile(times_s: Sequence[float], part: float) -> float:
    """The value that this part of the times does not exceed."""
    return sorted(times_s)[int(part * (len(times_s) - 1))]


def p99(clients: Sequence[PoliteClient]) -> float:
    """The 99th percentile of the waits of all these clients."""
    return percentile([waited_s for client in clients for waited_s in list(client.waited_s)], 0.99)
