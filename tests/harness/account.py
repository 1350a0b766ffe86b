"""An account of the events sent, acked and stored. Every test that breaks something compares them at its end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.harness.database_check import check_database
from tests.harness.server_process import ServerProcess
from tests.harness.wire import Json, event, exchange


@dataclass(frozen=True)
class Verdict:
    """How the stored events differ from the sent and acked ones: a list of event ids for each kind of error."""

    sent: int
    acked: int
    stored: int
    lost: list[str]  # acked, and not stored
    phantom: list[str]  # stored, and never sent
    duplicate: list[str]  # stored more than once
    corrupt: list[str]  # stored in a form other than the one sent, or under a seq other than the acked one
    replies: list[str]  # replies out of the order of the lines, or under another seq than before

    @property
    def figures(self) -> dict[str, int]:
        wrong = {name: len(getattr(self, name)) for name in ("lost", "phantom", "duplicate", "corrupt", "replies")}
        return {"sent": self.sent, "acked": self.acked, "stored": self.stored, **wrong}

    def assert_flawless(self) -> None:
        assert (self.lost, self.phantom, self.duplicate, self.corrupt, self.replies) == ([], [], [], [], [])


@dataclass
class Account:
    """Events by id, of all clients of a test: those that may have been sent, and those that were acked."""

    topic: str = "t"
    sent: dict[str, bytes] = field(default_factory=dict)
    acked: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    order_broken: list[str] = field(default_factory=list)

    def line(self, event_id: str, payload: str = "{}") -> bytes:
        """The line of an event that is about to be sent. NAME in its payload is replaced by its id."""
        self.sent[event_id] = line = event(event_id, self.topic, payload.replace("NAME", event_id))
        return line

    def lines(self, names: Iterable[str], payload: str = "{}") -> bytes:
        """The lines of several events."""
        return b"".join([self.line(name, payload) for name in names])

    def send(self, port: int, prefix: str, count: int, payload: str = '{"n":"NAME"}') -> None:
        """Send this many events on a new connection, and note the replies."""
        names = [f"{prefix}-{number}" for number in range(count)]
        for name, reply in zip(names, exchange(port, self.lines(names, payload)), strict=True):
            self.heard(name, reply)

    def heard(self, expected: str, reply: Json) -> None:
        """Note the reply to the next event in line."""
        if reply.get("event_id") != expected:
            self.order_broken.append(f"{expected}: {reply}")
        if reply["status"] in ("stored", "duplicate"):
            if (older := self.acked.get(expected, reply["seq"])) != reply["seq"]:
                self.order_broken.append(f"{expected}: acked under {older} before: {reply}")
            self.acked[expected] = reply["seq"]
        else:
            self.errors[expected] = reply["code"]

    def judge(self, server: ServerProcess) -> Verdict:
        """Compare the account with the events that the server has stored."""
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
        """Assert that no event is lost, phantom, duplicate or corrupt. Resend the unknown ones; then stored = sent."""
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

    def verify_and_stop(self, server: ServerProcess) -> Verdict:
        """Verify the account; then the server must exit with 0, and SQLite must find its file sound."""
        verdict = self.verify(server)
        assert server.stop() == 0
        check_database(server.db)
        return verdict


def total(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """The summed figures of several rounds."""
    figures: Counter[str] = Counter()
    for verdict in verdicts:
        figures.update(verdict.figures)
    return dict(figures)
