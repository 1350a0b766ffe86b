"""Clients that do everything right while others do not: how long they wait for their acks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.checker import Ledger
from tests.wire import Peer, event


class PoliteClient(threading.Thread):
    """Sends one event at a time, waits for its ack and notes how long that took."""

    def __init__(self, ledger: Ledger, port: int, name: str, host: str = "127.0.0.1") -> None:
        super().__init__(name=name, daemon=True)
        self.waited_s: list[float] = []
        self.failure: BaseException | None = None
        self._ledger = ledger
        self._peer = Peer(port, host=host)
        self._enough = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with self._peer as peer:
                while not self._enough.is_set():
                    self._ask(peer, f"{self.name}-{len(self.waited_s)}")
        except BaseException as failure:
            self.failure = failure

    def _ask(self, peer: Peer, name: str) -> None:
        line = event(name, self._ledger.topic, f'{{"n":"{name}"}}')
        self._ledger.sent[name] = line
        started = time.monotonic()
        reply = peer.ask(line)
        self.waited_s.append(time.monotonic() - started)
        assert (reply["status"], reply["event_id"]) == ("stored", name), reply
        self._ledger.acked[name] = reply["seq"]

    def end(self) -> None:
        self._enough.set()
        self.join(60)
        assert self.failure is None, f"a polite client was not served: {self.failure!r}"
        assert not self.is_alive(), "a polite client waits for ever"


@contextmanager
def polite_clients(ledger: Ledger, port: int, count: int, name: str) -> Iterator[list[PoliteClient]]:
    """So many of them; at the end each must have had all its acks."""
    clients = [PoliteClient(ledger, port, f"{name}{number}") for number in range(count)]
    yield clients
    for client in clients:
        client.end()


def wait_for_acks(clients: Sequence[PoliteClient], seconds: float) -> None:
    """For so long, and until each has had ten."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or any(len(client.waited_s) < 10 for client in clients):
        assert all(client.is_alive() for client in clients), [client.failure for client in clients]
        assert time.monotonic() < deadline + 60, "a polite client starves"
        time.sleep(0.01)


def p99(clients: Sequence[PoliteClient]) -> float:
    """The 99th percentile of all their waiting."""
    waited = sorted(one for client in clients for one in list(client.waited_s))
    return waited[len(waited) * 99 // 100]


def baseline(ledger: Ledger, port: int, count: int, seconds: float) -> float:
    """What they wait when they are alone: the 99th percentile."""
    with polite_clients(ledger, port, count, "alone") as clients:
        wait_for_acks(clients, seconds)
    return p99(clients)
