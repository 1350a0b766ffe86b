"""What was sent, acked and stored, compared: the check at the end of every test that breaks something."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tests.server_process import ServerProcess
from tests.wire import Peer, event, exchange


@dataclass
class Ledger:
    """Events by id over all clients of a test: sent (maybe), and acked with their seq."""

    topic: str = "t"
    sent: dict[str, bytes] = field(default_factory=dict)
    acked: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    order_broken: list[str] = field(default_factory=list)

    def verify(self, server: ServerProcess) -> None:
        """LOST = PHANTOM = DUPLICATE = CORRUPT = 0; after resending what is unknown, stored = sent."""
        self._compare(server, complete=False)
        unknown = [line for name, line in self.sent.items() if name not in self.acked]
        for start in range(0, len(unknown), 1000):
            for reply in exchange(server.port, b"".join(unknown[start : start + 1000])):
                assert reply["status"] in ("stored", "duplicate"), reply
        self._compare(server, complete=True)

    def _compare(self, server: ServerProcess, complete: bool) -> None:
        stored = server.stored(self.topic)  # asserts that none is there twice
        lost = self.acked.keys() - stored.keys()
        phantom = stored.keys() - self.sent.keys()
        changed = [name for name, found in stored.items() if json.loads(self.sent[name])["payload"] != found["payload"]]
        moved = [name for name, seq in self.acked.items() if name in stored and stored[name]["seq"] != seq]
        assert (lost, phantom, changed, moved, self.order_broken) == (set(), set(), [], [], [])
        if complete:
            assert stored.keys() == self.sent.keys()


class Sender(threading.Thread):
    """A client that pipelines new events until the connection ends or it is told to stop."""

    def __init__(self, ledger: Ledger, port: int, name: str, in_flight: int = 200) -> None:
        super().__init__(name=name, daemon=True)
        self._ledger = ledger
        self._port = port
        self._in_flight = in_flight
        self._stop_sending = threading.Event()
        self.acks = 0
        self.start()

    def stop(self) -> None:
        """Send no more; the acks that are due are still awaited."""
        self._stop_sending.set()

    def run(self) -> None:
        waiting: list[str] = []
        with contextlib.suppress(OSError, AssertionError), Peer(self._port) as peer:
            number = 0
            while not self._stop_sending.is_set():
                names = [f"{self.name}-{number + i}" for i in range(self._in_flight // 2)]
                number += len(names)
                lines = [event(name, self._ledger.topic, f'{{"n":"{name}"}}') for name in names]
                self._ledger.sent.update(zip(names, lines, strict=True))
                waiting += names
                peer.send(b"".join(lines))
                while len(waiting) > self._in_flight // 2:
                    self._take_reply(peer, waiting)
            peer.half_close()
            while waiting:
                self._take_reply(peer, waiting)

    def _take_reply(self, peer: Peer, waiting: list[str]) -> None:
        reply = peer.reply()
        expected = waiting.pop(0)
        if reply.get("event_id") != expected:
            self._ledger.order_broken.append(f"{expected}: {reply}")
        if reply["status"] in ("stored", "duplicate"):
            self._ledger.acked[expected] = reply["seq"]
            self.acks += 1
        else:
            self._ledger.errors[expected] = reply["code"]


def check_database(path: Path) -> None:
    """SQLite's own opinion of the file, and whether the counters agree with the rows. The server must be stopped."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows, last = database.execute("SELECT count(*), max(seq) FROM events").fetchone()
        stored, next_seq, topics = database.execute("SELECT stored, next_seq, topics FROM totals").fetchone()
        assert stored == rows
        assert next_seq > (last or 0)
        by_topic = "SELECT topic, count(*), max(seq) FROM events GROUP BY topic ORDER BY topic"
        counted = database.execute(by_topic).fetchall()
        assert database.execute("SELECT id, stored, last_seq FROM topics ORDER BY id").fetchall() == counted
        assert topics == len(counted)
