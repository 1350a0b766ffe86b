"""What a peer is, and what it is sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import orjson

from bench.channel import Channel


class Event(NamedTuple):
    """A line, with its LF, and the key that a client which makes events knows without parsing them."""

    topic: bytes
    event_id: bytes
    line: bytes


@dataclass(frozen=True, slots=True)
class Work:
    """The events to send, in order."""

    events: list[Event]

    @classmethod
    def of(cls, lines: list[bytes]) -> Work:
        topics: dict[str, bytes] = {}  # one object for each of the few topics, not one for each event
        events = []
        for line in lines:
            fields = orjson.loads(line)
            topic = topics.setdefault(fields["topic"], fields["topic"].encode())
            events.append(Event(topic, fields["event_id"].encode(), line))
        return cls(events)

    @property
    def count(self) -> int:
        return len(self.events)

    @property
    def unique(self) -> int:
        return len({(event.topic, event.event_id) for event in self.events})

    def first(self, count: int) -> Work:
        return Work(self.events[:count])

    def dealt(self, connections: int) -> list[Work]:
        """For so many connections, in turn: as ``workload.generate`` deals them."""
        return [Work(self.events[first::connections]) for first in range(connections)]

    def batches(self, size: int) -> Iterator[list[Event]]:
        for first in range(0, len(self.events), size):
            yield self.events[first : first + size]


class Running(ABC):
    """A peer that has been started."""

    @abstractmethod
    def send(self, work: Work) -> float:
        """Send everything and wait for every ack. Seconds, from the first byte on.

        A peer that acks before it stores is waited for until it has stored everything: otherwise the fastest would
        be the one that does nothing.
        """

    @abstractmethod
    def stored(self) -> int:
        """Count what it really holds of what was sent."""

    def channel(self, work: Work) -> Channel | None:
        """One more connection, over which these events go one by one; None where latency is not measured."""
        return None

    def versions(self) -> dict[str, str]:
        """Of everything of the peer's that the figures depend on."""
        return {}


@dataclass(frozen=True, slots=True)
class Peer:
    """A system, in one of its variants, that events can be sent to."""

    name: str
    guarantee: str
    """Is an event fsynced before its ack? Is a duplicate always found, and for how long?"""

    strong: bool
    """Fsynced before the ack, and exact deduplication for ever: what an ack of ours means."""

    start: Callable[[Path], AbstractContextManager[Running]]
    """Start it in this empty folder; the context's end stops it."""

    share: int = 1
    """It is sent one event of so many: a slow one would take the whole day."""

    deduplicates: bool = True


class NotRun(Exception):
    """This peer cannot be measured here; the text says why."""
