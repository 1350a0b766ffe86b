"""The outcomes of events, as replies."""

from __future__ import annotations

from collections.abc import Sequence

from aggregator.event import Event, Events
from aggregator.server.intake import Outcome
from aggregator.wire import Failure, Rejection, replies
from aggregator.wire.replies import Reply


def encoded(events: Events, outcome: Outcome) -> bytes:
    """The replies to events that have one outcome, one line for each event."""
    if isinstance(outcome, Failure):
        return b"".join(map(replies.encode, _replies(list(events), outcome)))
    return replies.encode_acks(events, outcome.seqs, outcome.duplicates, outcome.offset)


def encoded_batch(members: Sequence[Event | Rejection], line_number: int, outcome: Outcome) -> bytes:
    """The one reply to a batch line; ``outcome`` is that of its events."""
    to_events = iter(_replies([member for member in members if isinstance(member, Event)], outcome))
    results = [
        next(to_events) if isinstance(member, Event) else replies.rejected(member, line_number) for member in members
    ]
    return replies.encode(replies.batch(results))


def _replies(events: list[Event], outcome: Outcome) -> list[Reply]:
    if isinstance(outcome, Failure):
        return [replies.error(outcome, event) for event in events]
    return replies.acks(events, outcome.seqs, outcome.duplicates, outcome.offset)
