"""A batch, and its parts. A part holds the events of one lane, as the parameters of that lane's ``append``.

Pure: no database.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aggregator.event import KEY_BYTES, Events
from aggregator.storage import block
from aggregator.storage.engine import StorageFailed
from aggregator.storage.postgres import arrays
from aggregator.storage.postgres.topics import Topic

TYPES: Final = [
    *(arrays.ARRAY_OF[one] for one in (arrays.UUID, *(arrays.INT4,) * 5)),
    *(arrays.ARRAY_OF[arrays.BYTEA],) * 4,
    arrays.UUID,
    arrays.INT4,
]
"""The types of the parameters of ``append``."""

UNKNOWN: Final = -1
"""A value that no generation of ``Topics`` has."""


@dataclass(slots=True)
class Part:
    """The events of a batch that are in one lane, ready to be stored."""

    lane: int
    places: Sequence[int]
    """Their positions in the batch."""
    twins: Mapping[int, int]
    """Keys that repeat within the batch: the position of each repeat, mapped to that of the key's first event."""
    values: list[bytes | None]
    """The parameters of ``append``, except the last."""
    token: bytes
    """The same each time the part is sent; ``cut_again`` makes a new one."""
    topics: Mapping[str, int]
    """The ids of its topics, by name."""
    generation: int
    """The generation of ``Topics`` in which these ids were right."""
    unknown: bool = False
    """Whether it was sent and may be stored: its outcome is unknown."""


@dataclass(slots=True)
class Batch:
    """Events in the order in which they arrived."""

    events: Events = field(default_factory=Events)
    parts: list[Part] | None = None

    def __len__(self) -> int:
        return len(self.events)

    @property
    def size_bytes(self) -> int:
        """The total length of the events' JSON."""
        return self.events.size_bytes

    def add(self, events: Events) -> None:
        """Take more events."""
        self.events += events

    def cut(self, topics: Mapping[str, Topic], generation: int) -> list[Part]:
        """Cut the batch by lane, once: a part must be the same when it is sent again. ``generation``: of ``topics``."""
        if self.parts is None:
            lanes: dict[int, list[int]] = {}
            if len({topic.lane for topic in topics.values()}) == 1:
                lanes[next(iter(topics.values())).lane] = list(range(len(self.events)))
            else:
                for place, name in enumerate(self.events.topics):
                    lanes.setdefault(topics[name].lane, []).append(place)
            self.parts = [_part(self.events, topics, generation, *each) for each in sorted(lanes.items())]
        return self.parts

    def cut_again(self, part: Part, topics: Mapping[str, Topic]) -> None:
        """Make a part again with the ids that its topics have now. Raises StorageFailed.

        Nothing of the part may have been stored. The ids are compared with the database's again before it is sent.
        """
        if any(topics[name].lane != part.lane for name in part.topics):
            raise StorageFailed("topics of a batch were lost, and made again in another lane")
        again = _part(self.events, topics, UNKNOWN, part.lane, part.places)
        part.values, part.token, part.topics, part.generation = again.values, again.token, again.topics, UNKNOWN


def _part(events: Events, topics: Mapping[str, Topic], generation: int, lane: int, places: Sequence[int]) -> Part:
    keys = [events.digests[place][:KEY_BYTES] for place in places]
    twins = _twins(places, keys)
    if twins:
        places = [place for place in places if place not in twins]
        keys = [events.digests[place][:KEY_BYTES] for place in places]
    names, json = events.topics, events.json
    if len(places) < len(events):
        names, json = [names[place] for place in places], [json[place] for place in places]
    ids = {name: topic.id for name, topic in topics.items()}
    blocks = list(block.cut(names, json))
    groups = _groups(blocks)
    token = uuid.uuid4().bytes
    by_key = sorted(range(len(keys)), key=keys.__getitem__)
    values: list[bytes | None] = [
        arrays.uuids([keys[place] for place in by_key]),
        arrays.int4s(by_key),
        arrays.int4_elements([groups[place] for place in by_key]),
        arrays.int4s([ids[name] for one in blocks for name in one.topics]),
        arrays.int4s([one.first for one in blocks for _ in one.topics]),
        arrays.int4s([one.first for one in blocks]),
        arrays.byteas([arrays.plain_int4s([ids[name] for name in one.topics]) for one in blocks]),
        arrays.byteas([bytes(one.numbers) for one in blocks]),  # type: ignore[arg-type]
        arrays.byteas([arrays.plain_int4s(one.ends) for one in blocks]),
        arrays.joined_byteas([(one.ends[-1], json[one.first : one.first + len(one.ends)]) for one in blocks]),
        token,
    ]
    return Part(lane, places, twins, values, token, {name: ids[name] for name in dict.fromkeys(names)}, generation)


def _twins(places: Sequence[int], keys: Sequence[bytes]) -> dict[int, int]:
    """The places of events whose key has an earlier place: the first place of that key."""
    if len(set(keys)) == len(keys):
        return {}
    first: dict[bytes, int] = {}
    return {place: first[key] for place, key in zip(places, keys, strict=True) if first.setdefault(key, place) != place}


def _groups(blocks: Sequence[block.Block]) -> list[bytes]:
    """For each event its group, as an element of an array. Groups are numbered from 1, block by block."""
    groups: list[bytes] = []
    count = 0
    for one in blocks:
        of_block = [arrays.int4(count + number) for number in range(1, len(one.topics) + 1)]
        groups += map(of_block.__getitem__, one.numbers)  # type: ignore[arg-type]
        count += len(of_block)
    return groups
