"""Keys, events that carry them, and a plain dict that says how a store has to answer."""

from __future__ import annotations

from aggregator.event import Event
from aggregator.storage.sqlite.store import Store
from tests.harness import storage

Key = tuple[str, str]
"""Topic and event_id."""


def event_of(key: Key, number: int = 0, padding: int = 0) -> Event:
    """An event with this key. ``number`` tells it apart from other events with the same key."""
    topic, event_id = key
    return Event.of(topic, event_id, b'{"event_id":"%s","n":%d,"x":"%s"}' % (event_id.encode(), number, b"x" * padding))


def keys_of(prefix: str, count: int, topics: int = 3) -> list[Key]:
    """This many keys, spread over this many topics in turn."""
    return [(f"t{i % topics}", f"{prefix}-{i}") for i in range(count)]


async def append(store: Store, keys: list[Key], padding: int = 0) -> tuple[int, dict[int, int]]:
    """Store an event for each key as one batch; return the first seq, and the older seqs of duplicates by position."""
    return await storage.append(store, [event_of(key, padding=padding) for key in keys])


async def seqs_of(store: Store, keys: list[Key]) -> list[int | None]:
    """The seq under which each key is stored; None if it is not."""
    found = [await store.event(*key) for key in keys]
    return [one.seq if one else None for one in found]


class Model:
    """What a store has to do, as a dict and a list."""

    def __init__(self) -> None:
        self.next_seq = 1
        self.seqs: dict[Key, int] = {}
        self.stored: list[tuple[int, Event]] = []

    def append(self, events: list[Event]) -> tuple[int, dict[int, int]]:
        """Like ``storage.append``."""
        first_seq, duplicates = self.next_seq, {}
        for position, one in enumerate(events):
            seq = self.seqs.setdefault((one.topic, one.event_id), first_seq + position)
            if seq == first_seq + position:
                self.stored.append((seq, one))
            else:
                duplicates[position] = seq
        self.next_seq += len(events)
        return first_seq, duplicates

    def of_topic(self, topic: str) -> list[tuple[int, bytes]]:
        """Seq and JSON of the events of a topic, in order."""
        return [(seq, one.json) for seq, one in self.stored if one.topic == topic]
