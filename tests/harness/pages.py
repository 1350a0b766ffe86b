"""Events of one topic, read from an engine slice by slice, as the server reads them."""

from __future__ import annotations

from aggregator.storage.engine import AnyEngine, Position, StoredEvent, Stretch
from aggregator.wire.interest import interest_in


async def page(engine: AnyEngine, topic: str, limit: int, after: Position | None = None) -> list[StoredEvent]:
    """The newest events, newest first; or those after a position, oldest first."""
    wanted = interest_in((topic,))
    found: list[StoredEvent] = []
    head = engine.head
    position = head if after is None else after
    while len(found) < limit:
        if after is None:
            part = await engine.read_back(wanted, position)
            found += [event for stretch in part.stretches for event in _events(stretch)[::-1]]
        elif engine.distance(position, head) <= 0:
            break
        else:
            part = await engine.read(wanted, position, head)
            found += [event for stretch in part.stretches for event in _events(stretch)]
        position = part.position
        if after is None and position == 0:
            break
    return found[:limit]


def _events(stretch: Stretch) -> list[StoredEvent]:
    assert list(stretch.seqs) == sorted(set(stretch.seqs))
    return [StoredEvent(seq, stretch.received_at, json) for seq, json in zip(stretch.seqs, stretch.json, strict=True)]
