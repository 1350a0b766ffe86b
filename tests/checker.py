"""What was sent, acked and stored, compared: the check at the end of every test that breaks something."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregator.event import KEY_BYTES, digest
from tests.server_process import ServerProcess
from tests.wire import Json, Peer, event, exchange


@dataclass(frozen=True)
class Verdict:
    """How what is stored differs from what was sent and acked: event ids, by what is wrong with them."""

    sent: int
    acked: int
    stored: int
    lost: list[str]  # acked, and not stored
    phantom: list[str]  # stored, and never sent
    duplicate: list[str]  # stored more than once
    corrupt: list[str]  # stored otherwise than it was sent, or under another seq than its ack said
    replies: list[str]  # not to the line that was next, or not a reply at all

    @property
    def figures(self) -> dict[str, int]:
        wrong = {name: len(getattr(self, name)) for name in ("lost", "phantom", "duplicate", "corrupt", "replies")}
        return {"sent": self.sent, "acked": self.acked, "stored": self.stored, **wrong}

    def assert_flawless(self) -> None:
        assert (self.lost, self.phantom, self.duplicate, self.corrupt, self.replies) == ([], [], [], [], [])


@dataclass
class Ledger:
    """Events by id over all clients of a test: sent (maybe), and acked with their seq."""

    topic: str = "t"
    sent: dict[str, bytes] = field(default_factory=dict)
    acked: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    order_broken: list[str] = field(default_factory=list)

    def line(self, event_id: str, payload: str = "{}") -> bytes:
        """The line of an event that is going to be sent."""
        self.sent[event_id] = line = event(event_id, self.topic, payload)
        return line

    def heard(self, expected: str, reply: Json) -> None:
        """Note the reply to the event that was next in line."""
        if reply.get("event_id") != expected:
            self.order_broken.append(f"{expected}: {reply}")
        if reply["status"] in ("stored", "duplicate"):
            self.acked[expected] = reply["seq"]
        else:
            self.errors[expected] = reply["code"]

    def judge(self, server: ServerProcess) -> Verdict:
        """Compare with what the server has stored."""
        listed = server.listed(self.topic)
        stored = {found["event_id"]: found for found in listed}
        return Verdict(
            len(self.sent),
            len(self.acked),
            len(listed),
            lost=sorted(self.acked.keys() - stored.keys()),
            phantom=sorted(stored.keys() - self.sent.keys()),
            duplicate=[name for name, count in Counter(found["event_id"] for found in listed).items() if count > 1],
            corrupt=[name for name, found in stored.items() if name in self.sent and not self._is_as_sent(found)],
            replies=self.order_broken,
        )

    def _is_as_sent(self, found: Json) -> bool:
        name = found["event_id"]
        as_sent = {field: value for field, value in found.items() if field not in ("seq", "received_at")}
        sent: Json = json.loads(self.sent[name])
        return bool(as_sent == sent and self.acked.get(name, found["seq"]) == found["seq"])

    def verify(self, server: ServerProcess) -> Verdict:
        """LOST = PHANTOM = DUPLICATE = CORRUPT = 0; after resending what is unknown, stored = sent."""
        self.judge(server).assert_flawless()
        unknown = [name for name in self.sent if name not in self.acked]
        for start in range(0, len(unknown), 1000):
            names = unknown[start : start + 1000]
            replies = exchange(server.port, b"".join(self.sent[name] for name in names))
            for name, reply in zip(names, replies, strict=True):
                assert reply["status"] in ("stored", "duplicate"), reply
                self.heard(name, reply)
        verdict = self.judge(server)
        verdict.assert_flawless()
        assert verdict.stored == verdict.acked == verdict.sent
        return verdict


def total(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """The figures of several rounds together."""
    figures: Counter[str] = Counter()
    for verdict in verdicts:
        figures.update(verdict.figures)
    return dict(figures)


class Sender(threading.Thread):
    """A client that pipelines new events until the connection ends or it is told to stop."""

    def __init__(
        self, ledger: Ledger, port: int, name: str, in_flight: int = 200, payload: str = '{"n":"NAME"}'
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._ledger = ledger
        self._port = port
        self._in_flight = in_flight
        self._payload = payload
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
                waiting += names
                peer.send(b"".join([self._ledger.line(name, self._payload.replace("NAME", name)) for name in names]))
                while len(waiting) > self._in_flight // 2:
                    self._take_reply(peer, waiting)
            peer.half_close()
            while waiting:
                self._take_reply(peer, waiting)

    def _take_reply(self, peer: Peer, waiting: list[str]) -> None:
        reply = peer.reply()
        self._ledger.heard(waiting.pop(0), reply)
        self.acks += reply["status"] in ("stored", "duplicate")


def check_database(path: Path) -> None:
    """SQLite's own opinion of the file, and whether counters, postings and keys agree with the events. Stop the server
    before."""
    with contextlib.closing(sqlite3.connect(path)) as database:

        def rows(sql: str) -> list[tuple[Any, ...]]:
            return database.execute(sql).fetchall()

        assert rows("PRAGMA integrity_check") == [("ok",)]
        ((count, last),) = rows("SELECT count(*), max(seq) FROM events")
        ((stored, next_seq, topics, posted_seq),) = rows("SELECT stored, next_seq, topics, posted_seq FROM totals")
        assert stored == count
        assert next_seq > (last or 0)
        counted = rows("SELECT topic, count(*), max(seq) FROM events GROUP BY topic ORDER BY topic")
        assert rows("SELECT name, stored, last_seq FROM topics ORDER BY name") == counted
        assert topics == len(counted)
        # Each block up to posted_seq has a posting for each of its topics, and for no other.
        posted = rows(
            "SELECT name, block, number FROM postings JOIN topics ON topics.id = topic ORDER BY block, number"
        )
        assert posted == rows(
            f"SELECT value, first_seq, key FROM blocks, json_each(blocks.topics) WHERE first_seq <= {posted_seq}"
            " ORDER BY first_seq, key"
        )
        assert set(rows("SELECT value, first_seq FROM blocks, json_each(blocks.topics)")) == set(
            rows("SELECT DISTINCT topic, (SELECT max(first_seq) FROM blocks WHERE first_seq <= seq) FROM events")
        )
        # Each key is in one run, under the seq of its event, unless the event is newer than all runs.
        keyed = []
        last_of_all = 0
        for run, keys, last_seq in rows(
            "SELECT id, keys, last_seq FROM runs WHERE id NOT IN (SELECT coalesce(merging_into, 0) FROM runs)"
            " ORDER BY last_seq"
        ):
            found = rows(f"SELECT key, seq FROM keys_{run}")
            seqs = [seq for _, seq in found]
            assert len(found) == keys
            assert last_of_all < min(seqs) <= max(seqs) == last_seq
            last_of_all = last_seq
            keyed += found
        events = rows(f"SELECT topic, json, seq FROM events WHERE seq <= {last_of_all}")
        assert sorted(keyed) == sorted(
            (digest(topic, json.loads(text)["event_id"])[:KEY_BYTES], seq) for topic, text, seq in events
        )
