"""The commands that answer with stored events: EVENTS, a page at a time, and EVENT."""

from __future__ import annotations

import time
from typing import Final

import orjson

from aggregator.server import queries
from aggregator.server.asker import Answer, Asker
from aggregator.server.queries import MAX_LISTED, BadCommand, number
from aggregator.server.state import State
from aggregator.storage.engine import Position, Stretch
from aggregator.wire import delivery, replies
from aggregator.wire.interest import Interest

EVENTS_DEFAULT: Final = 10

MAX_WAIT_S: Final = 60

EVENTS_USAGE: Final = (
    "EVENTS <pattern>… [limit] [AFTER seq | BEFORE seq | SINCE time] [UNTIL time] [SOURCE name] [CONTAINS text]"
    " [WAIT s]"
)
EVENT_USAGE: Final = "EVENT <topic> <event_id>"
_OPTIONS: Final = ("AFTER", "BEFORE", "SINCE", "UNTIL", "SOURCE", "CONTAINS", "WAIT")


async def events(arguments: list[str], state: State, asker: Asker) -> Answer:
    query = queries.parse(arguments, _OPTIONS, EVENTS_USAGE, ("AFTER", "BEFORE", "SINCE"))
    most = EVENTS_DEFAULT
    if len(query.patterns) > 1 and query.patterns[-1].isdecimal():
        most = number("limit", query.patterns.pop(), 1, MAX_LISTED)
    interest = query.interest(asker.identity)
    wait_s = query.seconds("WAIT", 0, MAX_WAIT_S)
    if "WAIT" in query.options and "AFTER" not in query.options:
        raise BadCommand(replies.bad_option("WAIT needs AFTER", EVENTS_USAGE))
    await state.follower.refresh()
    after = query.position("AFTER", state)
    if after is None:
        after = await query.moment("SINCE", state)
    until = await query.moment("UNTIL", state)
    page = _Page(interest, most, state.config.reply_buffer_bytes)
    further: Answer = {}
    if after is None:
        seq = start = state.feed.head
        for limit in (until, query.before(state)):
            start = start if limit is None else state.engine.earlier(start, limit)
        older = await _newest(page, state, start)
        if isinstance(seq, str):  # otherwise the next page is BEFORE the seq of the last event
            further = {"before": older}
    else:
        seq = await _oldest(page, state, after, until)
        deadline = time.monotonic() + wait_s
        while until is None and not (page.events or page.cut or state.feed.stopped):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            if not state.engine.distance(seq, state.feed.head):  # otherwise more has been published since
                await state.feed.wait(interest, left_s)
            seq = await _oldest(page, state, seq, None)
    names = (
        {"topic": query.patterns[0]} if interest.names and len(interest.names) == 1 else {"patterns": query.patterns}
    )
    listed = {**names, "events": [orjson.Fragment(one) for one in page.events]}
    return {**listed, **({"truncated": True} if page.cut else {}), "seq": seq, **further}


class _Page:
    """The events of one answer, which is limited in number, bytes and time."""

    def __init__(self, interest: Interest, limit: int, max_bytes: int) -> None:
        self.interest = interest
        self.events: list[bytes] = []
        self.cut = False
        self._limit = limit
        self._bytes_left = max_bytes

    @property
    def full(self) -> bool:
        return len(self.events) >= self._limit or self.cut

    def take(self, stretch: Stretch, backwards: bool = False) -> int | None:
        """Add events until the page is full; return the seq of the last event that was added or passed over."""
        each = list(zip(stretch.seqs, stretch.json, strict=True))
        last: int | None = None
        for seq, json in reversed(each) if backwards else each:
            if self.full:
                break
            if not self.interest.picky or self.interest.wants_event(json):
                self._bytes_left -= len(json)
                if self.events and self._bytes_left < 0:
                    self.cut = True
                    break
                self.events.append(delivery.shown(seq, json, stretch.received_at))
            last = seq
        return last


async def _oldest(page: _Page, state: State, after: Position, until: Position | None) -> Position:
    """Fill the page with events past ``after``; return the position that the search has reached."""
    head = state.feed.head if until is None else until
    position = after
    deadline = time.monotonic() + queries.ANSWER_S
    while state.engine.distance(position, head) and not page.full:
        found = await state.engine.read(page.interest, position, head)
        for stretch in found.stretches:
            if (last := page.take(stretch)) is not None:
                position = state.engine.advance(position, [last])
            if page.full:
                return position
        position = found.position
        if position != head and time.monotonic() > deadline:
            page.cut = True
    return position


async def _newest(page: _Page, state: State, before: Position) -> Position:
    """Fill the page from ``before`` backwards; return the position that the search has reached."""
    position = before
    deadline = time.monotonic() + queries.ANSWER_S
    while position != 0 and not page.full:
        found = await state.engine.read_back(page.interest, position)
        for stretch in found.stretches:
            if (last := page.take(stretch, backwards=True)) is not None:
                position = state.engine.retreat(position, [last])
            if page.full:
                return position
        position = found.position
        if position != 0 and time.monotonic() > deadline:
            page.cut = True
    return position


async def event(arguments: list[str], state: State, asker: Asker) -> Answer:
    if len(arguments) != 2:
        raise BadCommand(replies.missing_argument("a topic and an event_id are needed", EVENT_USAGE))
    topic, event_id = arguments
    if not asker.identity.read.has(topic):
        return {"event": None}
    found = await state.engine.event(topic, event_id)
    if found is None:
        return {"event": None}
    return {"event": orjson.Fragment(delivery.shown(found.seq, found.json, found.received_at))}
