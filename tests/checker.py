"""What was sent, acked and stored, compared: the check at the end of every test that breaks something."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregator.event import KEY_BYTES, digest
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
    """SQLite's own opinion of the file, and whether counters, spans and keys agree with the events. Stop the server."""
    with contextlib.closing(sqlite3.connect(path)) as database:

        def rows(sql: str) -> list[tuple[Any, ...]]:
            return database.execute(sql).fetchall()

        assert rows("PRAGMA integrity_check") == [("ok",)]
        ((count, last),) = rows("SELECT count(*), max(seq) FROM events")
        ((stored, next_seq, topics, flushed_seq),) = rows("SELECT stored, next_seq, topics, flushed_seq FROM totals")
        assert stored == count
        assert next_seq > (last or 0)
        counted = rows("SELECT topic, count(*), max(seq) FROM events GROUP BY topic ORDER BY topic")
        assert rows("SELECT id, stored, last_seq FROM topics WHERE stored > 0 ORDER BY id") == counted
        assert rows("SELECT count(*) FROM topics") == [(topics,)]
        # Each event lies in the last span of its topic that starts before it.
        span = (
            "SELECT last_seq FROM spans WHERE topic = events.topic AND first_seq <= seq ORDER BY first_seq DESC LIMIT 1"
        )
        assert rows(f"SELECT seq FROM events WHERE seq > coalesce(({span}), 0)") == []
        # Each key is in one run, under the seq of its event, unless the event is newer than all runs.
        keyed = []
        for run, keys in rows("SELECT id, keys FROM runs WHERE id NOT IN (SELECT coalesce(merging_into, 0) FROM runs)"):
            found = rows(f"SELECT key, seq FROM keys_{run}")
            assert len(found) == keys
            keyed += found
        events = rows(f"SELECT name, json, seq FROM events JOIN topics ON id = topic WHERE seq <= {flushed_seq}")
        assert sorted(keyed) == sorted(
            (digest(topic, json.loads(text)["event_id"])[:KEY_BYTES], seq) for topic, text, seq in events
        )
