"""Clients that send as fast as they are answered, and keep an account of it."""

from __future__ import annotations

import contextlib
import random
import threading

from tests.harness.account import Account
from tests.harness.background import FINISH_S
from tests.harness.polling import wait_until
from tests.harness.wire import Peer


class LoadClient(threading.Thread):
    """A client that pipelines new events until the connection ends or the client is told to stop.

    After each ten new events it sends ``again`` older ones.
    """

    def __init__(
        self,
        account: Account,
        port: int,
        name: str,
        in_flight: int = 200,
        payload: str = '{"n":"NAME"}',
        again: int = 0,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._account = account
        self._port = port
        self._in_flight = in_flight
        self._payload = payload
        self._again = again
        self._stop_sending = threading.Event()
        self.acks = 0
        self.start()

    def stop(self) -> None:
        """Send no more events, but still wait for the outstanding acks."""
        self._stop_sending.set()

    def finish(self) -> None:
        """Wait for its end, after ``stop`` or because its connection ends."""
        self.join(FINISH_S)
        assert not self.is_alive(), f"{self.name} does not end"

    def wait_for_acks(self, count: int = 1) -> None:
        """Wait until it has received this many acks more than it has now."""
        enough = self.acks + count
        wait_until(lambda: self.acks >= enough)

    def run(self) -> None:
        waiting: list[str] = []
        with contextlib.suppress(OSError, AssertionError), Peer(self._port) as peer:
            number = 0
            while not self._stop_sending.is_set():
                names = [f"{self.name}-{number + i}" for i in range(self._in_flight // 2)]
                number += len(names)
                names += [f"{self.name}-{random.randrange(number)}" for _ in range(len(names) * self._again // 10)]
                waiting += names
                peer.send(self._account.lines(names, self._payload))
                while len(waiting) > self._in_flight // 2:
                    self._take_reply(peer, waiting)
            peer.half_close()
            while waiting:
                self._take_reply(peer, waiting)

    def _take_reply(self, peer: Peer, waiting: list[str]) -> None:
        reply = peer.reply()
        self._account.heard(waiting.pop(0), reply)
        self.acks += reply["status"] in ("stored", "duplicate")


class Load:
    """Several load clients at once. Their names begin with ``name``, which no other load of the account may use."""

    def __init__(
        self, account: Account, port: int, clients: int, name: str = "c", in_flight: int = 200,
        payload: str = '{"n":"NAME"}', again: int = 0,
    ) -> None:  # fmt: skip
        self.clients = [LoadClient(account, port, f"{name}{i}", in_flight, payload, again) for i in range(clients)]

    def wait_for_acks(self, count: int = 1) -> None:
        """Wait until each client has received this many acks more than it has now."""
        enough = [(client, client.acks + count) for client in self.clients]
        wait_until(lambda: all(client.acks >= acks for client, acks in enough))

    @property
    def acks(self) -> int:
        """How many acks all clients together have received."""
        return sum(client.acks for client in self.clients)

    def stop(self) -> None:
        """Send no more events, but still wait for the outstanding acks."""
        for client in self.clients:
            client.stop()

    def finish(self) -> None:
        """Wait for their end, after ``stop`` or because their connections end."""
        for client in self.clients:
            client.finish()
