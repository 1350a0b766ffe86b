"""A subscriber, and a check of its lines: nothing lost, doubled, out of order, or never sent by a client."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.harness.account import Account
from tests.harness.background import Background
from tests.harness.polling import wait_until
from tests.harness.wire import Json, Peer

EVENT_START: Final = b'{"status":"event","event":'


def all_topics(topic: str) -> bool:
    return True


@dataclass(frozen=True)
class ReadVerdict:
    """How the delivered events differ from the acked ones: a list of event ids for each kind of error."""

    delivered: int
    lost: list[str]  # acked, in a range that was said to be complete, and not delivered
    doubled: list[str]  # delivered twice
    disordered: list[str]  # not after the position that was told before
    phantom: list[str]  # never sent, sent in another form, or acked under another seq

    @property
    def figures(self) -> dict[str, int]:
        names = ("lost", "doubled", "disordered", "phantom")
        return {"delivered": self.delivered, **{name: len(getattr(self, name)) for name in names}}

    def assert_flawless(self) -> None:
        assert (self.lost, self.doubled, self.disordered, self.phantom) == ([], [], [], [])


class Reading:
    """One SUBSCRIBE on its own connection, and a thread that notes its lines until the connection ends.

    ``position`` is the last position it was told, by an event or by another line.
    """

    def __init__(
        self,
        port: int,
        arguments: str,
        accounts: Sequence[Account],
        *,
        receive_buffer: int | None = None,
        host: str = "127.0.0.1",
        bytes_per_s: int = 0,
        paused: bool = False,
    ) -> None:
        """``paused``: it reads one line, and the rest after ``go_on``."""
        self.arguments = arguments
        self.seqs: list[int] = []
        self.ids: list[str] = []
        self.control: list[Json] = []
        self.gaps: list[tuple[int, int]] = []
        self.disordered: list[str] = []
        self.phantom: list[str] = []
        self.ended = False
        self._closing = False
        self._accounts = {account.topic: account for account in accounts}
        self._bytes_per_s = bytes_per_s
        self._may_read = threading.Event()
        if not paused:
            self._may_read.set()
        self.peer = Peer(port, host=host, receive_buffer=receive_buffer)
        self.reply = self.peer.ask(f"SUBSCRIBE {arguments}\n".encode())
        after = self.reply.get("after", 0)
        self.after: int = after if isinstance(after, int) else 0  # with several lanes: readers of one topic begin at 0
        self.position = self.after
        self._work = Background(self._read)

    # --- the client

    def _read(self) -> None:
        try:
            while not self._closing and (line := self.peer.raw_line()):
                self._take(line)
                if self._bytes_per_s:
                    time.sleep(len(line) / self._bytes_per_s)
                self._may_read.wait()
        except OSError:
            pass  # a reset: the server was killed, or the test closed the connection
        finally:
            self.ended = True

    def _take(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            return  # the server was killed in the middle of the line
        found = json.loads(line)
        if not line.startswith(EVENT_START):
            self._take_control(found)
            return
        event = found["event"]
        name, seq = event["event_id"], event["seq"]
        if seq <= self.position:
            self.disordered.append(f"{name}: {seq} behind {self.position}")
        account = self._accounts.get(event["topic"])
        sent = account.sent.get(name) if account else None
        if sent is None or not line.startswith(EVENT_START + sent.rstrip()[:-1] + b',"seq":'):
            self.phantom.append(name)
        self.position = seq
        self.seqs.append(seq)
        self.ids.append(name)

    def _take_control(self, found: Json) -> None:
        self.control.append(found)
        seq = found.get("seq")
        if found["status"] == "gap":
            self.gaps.append((found["after"], seq))
        if isinstance(seq, int) and "event_id" not in found:
            if seq < self.position:
                self.disordered.append(f"{found} behind {self.position}")
            self.position = seq

    def pause(self) -> None:
        """Stop reading."""
        self._may_read.clear()

    def go_on(self) -> None:
        self._may_read.set()

    def close(self, reset: bool = False) -> None:
        """End the connection from the client's side."""
        self._closing = True
        self.go_on()
        self.peer.stop_reading()
        self._work.finish()
        if reset:
            self.peer.reset()
        else:
            self.peer.close()

    def finish(self) -> None:
        """Wait for the end of the connection."""
        self._work.finish()
        self.peer.close()

    def wait_for(self, seq: int, timeout_s: float = 60.0) -> None:
        """Wait until it was told that everything up to this seq was delivered."""
        wait_until(lambda: self.position >= seq or self.ended, timeout_s)
        assert self.position >= seq, f"{self.arguments}: it ended at {self.position} with {self.control[-1:]}"

    def wait_for_line(self, status: str) -> Json:
        """Wait for a line with this status that is not an event."""
        wait_until(lambda: status in self.said or self.ended, 60)
        assert status in self.said, f"{self.arguments}: it ended with {self.control[-1:]}"
        return next(line for line in self.control if line["status"] == status)

    @property
    def said(self) -> list[str]:
        """The statuses of the lines that are not events."""
        return [line["status"] for line in list(self.control)]


def judge(
    readings: Sequence[Reading],
    accounts: Iterable[Account],
    wants: Callable[[str], bool] = all_topics,
    may_double: bool = False,
) -> ReadVerdict:
    """Compare the events that one reader was sent, on its successive connections, with those that were acked.

    ``wants`` says which topics it reads. Each connection resumes where an earlier one ended.
    """
    first, last = readings[0], max(reading.position for reading in readings)
    ids = [name for reading in readings for name in reading.ids]
    gaps = [gap for reading in readings for gap in reading.gaps]
    delivered = set(ids)
    lost, phantom = [], [name for reading in readings for name in reading.phantom]
    seq_of = {name: seq for reading in readings for name, seq in zip(reading.ids, reading.seqs, strict=True)}
    for account in accounts:
        for name, seq in list(account.acked.items()):
            inside = first.after < seq <= last and not any(after < seq <= until for after, until in gaps)
            if inside and wants(account.topic) and name not in delivered:
                lost.append(name)
            if name in seq_of and seq_of[name] != seq:
                phantom.append(f"{name} under {seq_of[name]}, acked under {seq}")
    doubled = [] if may_double else [name for name, count in Counter(ids).items() if count > 1]
    disordered = [one for reading in readings for one in reading.disordered]
    return ReadVerdict(len(delivered), sorted(lost), doubled, disordered, phantom)


def verify(
    readings: Reading | Sequence[Reading],
    accounts: Sequence[Account],
    wants: Callable[[str], bool] = all_topics,
    may_double: bool = False,
) -> ReadVerdict:
    """Compare as ``judge`` does, and assert that LOST = DOUBLED = DISORDERED = PHANTOM = 0."""
    readings = [readings] if isinstance(readings, Reading) else readings
    verdict = judge(readings, accounts, wants, may_double)
    verdict.assert_flawless()
    return verdict


def total(verdicts: Iterable[ReadVerdict]) -> dict[str, int]:
    """The summed figures of several readers."""
    figures: Counter[str] = Counter()
    for verdict in verdicts:
        figures.update(verdict.figures)
    return dict(figures)
