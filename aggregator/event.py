"""What an event is: a key (topic, event_id), the JSON object it was sent as, and the digest of its key.

A valid event keeps the bytes it was sent as. Nothing is ever re-encoded, so a payload comes back value for value: a
30-digit integer, ``1.10`` and ``-0.0`` keep their digits.

This module knows neither the rules that make an event valid (``wire.rules``) nor how events are stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Self

DIGEST_BYTES: Final = 32
KEY_BYTES: Final = 16
"""How much of a digest identifies a key. Among 10^12 keys, two share 128 bits with a probability of 1 in 10^15. Making
a key that collides with a given key takes 2^128 attempts; making any colliding pair takes 2^64."""

_blake2s = hashlib.blake2s


def digests(topics: Iterable[str], event_ids: Iterable[str]) -> list[bytes]:
    """The digest of each key, DIGEST_BYTES long; keys are looked up by their first KEY_BYTES.

    A name holds no control character, so the line feed keeps topic and event_id apart. BLAKE2s is the fastest of
    Python's cryptographic digests on a text of this length.
    """
    return [
        _blake2s(f"{topic}\n{event_id}".encode()).digest() for topic, event_id in zip(topics, event_ids, strict=True)
    ]


def digest(topic: str, event_id: str) -> bytes:
    """The digest of one key."""
    return _blake2s(f"{topic}\n{event_id}".encode()).digest()


@dataclass(slots=True)
class Event:
    """One valid event: its key, the JSON object it was sent as (UTF-8, byte for byte), and the digest of its key."""

    topic: str
    event_id: str
    json: bytes
    digest: bytes

    @classmethod
    def of(cls, topic: str, event_id: str, json: bytes) -> Event:
        """Make an event and compute its digest."""
        return cls(topic, event_id, json, digest(topic, event_id))


@dataclass(slots=True)
class Events:
    """Valid events in order, as columns: Python then handles a whole column in one step."""

    topics: list[str] = field(default_factory=list)
    event_ids: list[str] = field(default_factory=list)
    json: list[bytes] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    """The total length of the events' JSON."""

    @classmethod
    def of(cls, events: Iterable[Event]) -> Events:
        """Collect events into columns."""
        made = cls()
        for event in events:
            made.append(event)
        return made

    def __len__(self) -> int:
        return len(self.json)

    def __iter__(self) -> Iterator[Event]:
        return map(Event, self.topics, self.event_ids, self.json, self.digests)

    def __iadd__(self, more: Events) -> Self:
        self.topics += more.topics
        self.event_ids += more.event_ids
        self.json += more.json
        self.digests += more.digests
        self.size_bytes += more.size_bytes
        return self

    def pieces(self, count: int) -> Iterator[Events]:
        """The same events in order, ``count`` at a time."""
        for start in range(0, len(self), count):
            part = slice(start, start + count)
            json = self.json[part]
            yield Events(self.topics[part], self.event_ids[part], json, self.digests[part], sum(map(len, json)))

    def append(self, event: Event) -> None:
        """Add one event at the end."""
        self.topics.append(event.topic)
        self.event_ids.append(event.event_id)
        self.json.append(event.json)
        self.digests.append(event.digest)
        self.size_bytes += len(event.json)
