"""What a peer is, and what is sent to it."""

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
    """A line with its LF, and its key, which a client that makes events knows without parsing them."""

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
        """The work for each of so many connections, dealt in turn as ``workload.generate`` does."""
        return [Work(self.events[first::connections]) for first in range(connections)]

    def batches(self, size: int) -> Iterator[list[Event]]:
        for first in range(0, len(self.events), size):
            yield self.events[first : first + size]


class Running(ABC):
    """A peer that has been started."""

    @abstractmethod
    def send(self, work: Work) -> float:
        """Send everything and wait for every ack; return the seconds from the first byte on.

        A peer that acks before it stores is waited for until it has stored everything: otherwise the fastest peer
        would be the one that does nothing.
        """

    @abstractmethod
    def stored(self) -> int:
        """How many of the events that were sent it really holds, by its own count."""

    def channel(self, work: Work) -> Channel | None:
        """One more connection that sends these events one by one; None if latency is not measured."""
        return None

    def versions(self) -> dict[str, str]:
        """The versions of everything in the peer that the figures depend on."""
        return {}


@dataclass(frozen=True, slots=True)
class Peer:
    """One variant of a system that events can be sent to."""

    name: str
    guarantee: str
    """Whether an event is fsynced before its ack; whether a duplicate is always found, and for how long."""

    strong: bool
    """Whether an ack means what ours means: fsynced before it, with exact deduplication for ever."""

    start: Callable[[Path], AbstractContextManager[Running]]
    """Starts the peer in this empty folder; leaving the context stops it."""

    share: int = 1
    """It gets one of so many events, because a slow peer would take the whole day."""

    deduplicates: bool = True


class NotRun(Exception):
    """This peer cannot be measured here; the message says why."""
