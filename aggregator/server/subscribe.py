"""SUBSCRIBE and the commands that belong to a subscription: UNSUBSCRIBE, ACK, SUBSCRIBERS, CURSORS, FORGET."""

from __future__ import annotations

import time
from typing import Final

from aggregator.server import queries
from aggregator.server.asker import Answer, Asker, Refused
from aggregator.server.cursors import MAX_CURSORS
from aggregator.server.purpose import is_for, is_visible_to, patterns, to_json
from aggregator.server.queries import MAX_LISTED, BadCommand, number
from aggregator.server.state import State
from aggregator.server.subscription import Subscription
from aggregator.server.turns import in_turns
from aggregator.storage.engine import Position
from aggregator.wire import moment, replies
from aggregator.wire.interest import Interest
from aggregator.wire.rules import MAX_NAME_CHARS

DEFAULT_BEAT_S: Final = 15
MAX_BEAT_S: Final = 3600

SUBSCRIBERS_DIVISOR: Final = 4
"""One in this many connections is not open to subscribers: they stay connected, and must not starve senders."""

SUBSCRIBE_USAGE: Final = (
    "SUBSCRIBE <pattern>… [AFTER seq | SINCE time] [UNTIL time] [LIMIT n] [SOURCE name] [CONTAINS text] [SHARD i/n]"
    " [BEAT s] [AS name]"
)
ACK_USAGE: Final = "ACK <seq>"
FORGET_USAGE: Final = "FORGET <name>"
CURSORS_USAGE: Final = "CURSORS [limit] [AFTER name]"
_OPTIONS: Final = ("AFTER", "SINCE", "UNTIL", "LIMIT", "SOURCE", "CONTAINS", "SHARD", "BEAT", "AS")


async def subscribe(arguments: list[str], state: State, asker: Asker) -> Answer:
    query = queries.parse(arguments, _OPTIONS, SUBSCRIBE_USAGE, ("AFTER", "SINCE"))
    if asker.subscription:
        raise BadCommand(
            replies.not_now("this connection already has a subscription: UNSUBSCRIBE first, or open another connection")
        )
    interest = query.interest(asker.identity)
    beat_s = query.seconds("BEAT", DEFAULT_BEAT_S, MAX_BEAT_S)
    left = number("limit", query.options["LIMIT"], 1, queries.MAX_NUMBER) if "LIMIT" in query.options else None
    name = query.options.get("AS")
    if name is not None and not (0 < len(name) <= MAX_NAME_CHARS and name.isprintable()):
        raise BadCommand(replies.not_now(f"as: expected 1 to {MAX_NAME_CHARS} printable characters"))
    _refuse_too_many(state)
    await state.follower.refresh()
    after = query.position("AFTER", state)
    if after is None:
        after = await query.moment("SINCE", state)
    until = await query.moment("UNTIL", state)
    start = state.feed.head if after is None else after
    claim = None
    if name is not None:
        start, claim = await _start_of(name, interest, start, state, asker)
    # No await from here on. Before, other clients may have subscribed, and the server may have begun to stop.
    _refuse_too_many(state)
    if until is not None:
        until = state.engine.later(until, start)
    subscription = Subscription(asker, interest, start, until, left, beat_s, name, claim)
    state.feed.admit(subscription)
    if name is not None:
        if not state.cursors.is_held(name, claim):  # a later client was quicker
            state.feed.fail(subscription, replies.taken_over(state.cursors.holder(name), name))
        else:
            if previous := state.cursors.reader(name):
                state.feed.fail(previous, replies.taken_over(asker.peer, name))
            state.cursors.took(name, subscription)
    asker.subscribe(subscription)
    return {
        "subscribed": query.patterns,
        "after": start,
        "head": state.feed.head,
        "store": state.engine.store_id,
    }


def _refuse_too_many(state: State) -> None:
    if state.feed.stopped:
        raise Refused(replies.no_more_deliveries())
    limit = state.config.max_connections - state.config.max_connections // SUBSCRIBERS_DIVISOR
    if len(state.feed) >= limit:
        state.stats.subscribers_refused += 1
        raise Refused(replies.too_many_subscribers(limit))


async def _start_of(
    name: str, interest: Interest, start: Position, state: State, asker: Asker
) -> tuple[Position, str | None]:
    """The position at which the reader of a name resumes, and its claim. A new name is stored with its start."""
    cursors, reader = state.cursors, asker.identity
    claim: str | None = None
    while True:
        await cursors.on_disk(name)
        await cursors.refresh()
        if (cursor := cursors.get(name)) is None:
            if len(cursors) >= MAX_CURSORS:
                raise Refused(replies.too_many_cursors(MAX_CURSORS))
        elif not is_visible_to(cursor.interest, reader):
            raise BadCommand(replies.not_now(f"{name[:40]} belongs to another identity: choose another name"))
        elif not is_for(cursor.interest, interest):
            raise BadCommand(
                replies.not_now(f"{name[:40]} was created with other patterns or filters: FORGET it first")
            )
        if not state.engine.shared:
            if cursor is None:
                cursors.move(name, interest, start, reader)
                await cursors.on_disk(name)
            break
        if claim := await cursors.claim(name, interest, start, reader, asker.peer):
            await state.follower.refresh()  # the previous reader may have got further than this server knew
            break
    if (cursor := cursors.get(name)) is None:
        raise _forgotten(name)
    return cursor.acked, claim


def _taken(name: str) -> BadCommand:
    return BadCommand(replies.not_now(f"another client has subscribed as {name[:40]}"))


def _forgotten(name: str) -> BadCommand:
    return BadCommand(replies.not_now(f"{name[:40]} was forgotten"))


async def unsubscribe(arguments: list[str], state: State, asker: Asker) -> Answer:
    subscription = asker.subscription
    if subscription is None:
        raise BadCommand(replies.not_now("this connection has no subscription"))
    state.feed.end(subscription)
    asker.subscription_over()
    return {"unsubscribed": True, "seq": subscription.position}


async def ack(arguments: list[str], state: State, asker: Asker) -> Answer:
    if len(arguments) != 1:
        raise BadCommand(replies.missing_argument("a seq is missing", ACK_USAGE))
    subscription = asker.last_subscription
    if subscription is None or subscription.name is None:
        raise BadCommand(replies.not_now("this connection has no subscription with a name"))
    name = subscription.name
    if state.cursors.reader(name) not in (None, subscription):
        raise _taken(name)
    position = state.engine.parse_position(arguments[0])
    if position is None:
        raise queries.bad_position("seq", arguments[0], state)
    if state.engine.distance(subscription.sent, position):
        raise BadCommand(replies.not_now(f"seq: {position} is past {subscription.sent}, the last that was sent"))
    if (cursor := state.cursors.get(name)) is None:
        raise _forgotten(name)
    if not state.cursors.is_held(name, subscription.claim):
        raise _taken(name)
    # The later position in each lane: within a lane, events are delivered in order.
    position = state.engine.later(cursor.acked, position)
    if position != cursor.acked:
        state.cursors.move(name, subscription.interest, position, asker.identity, subscription.claim)
    await state.cursors.on_disk(name)
    if not state.cursors.is_held(name, subscription.claim):  # then the position may not have been stored
        raise _taken(name)
    return {"name": name, "acked": position}


# --- who reads


async def subscribers(arguments: list[str], state: State, asker: Asker) -> Answer:
    limit = number("limit", arguments[0], 1, MAX_LISTED) if arguments else MAX_LISTED
    asking = asker.identity
    every = [one async for one in in_turns(state.feed.subscriptions) if is_visible_to(to_json(one.interest), asking)]
    now = time.monotonic()
    return {
        "total": len(every),
        "subscribers": [
            {
                "peer": one.receiver.peer,
                "name": one.name,
                "patterns": one.interest.patterns,
                "state": state.feed.state(one),
                "next": one.position + 1 if isinstance(one.position, int) else one.position,
                "lag": state.engine.distance(one.position, state.feed.head),
                "delivered": one.delivered,
                "stalled_s": round(now - one.stalled_since, 1) if one.stalled_since is not None else 0.0,
            }
            async for one in in_turns(every[:limit])
        ],
    }


async def cursors(arguments: list[str], state: State, asker: Asker) -> Answer:
    rest = list(arguments)
    after = ""
    if len(rest) >= 2 and rest[-2].upper() == "AFTER":
        after = rest.pop()
        rest.pop()
    limit = number("limit", rest.pop(0), 1, MAX_LISTED) if rest else MAX_LISTED
    if rest:
        raise BadCommand(replies.unexpected_argument(rest[0], CURSORS_USAGE))
    await state.cursors.refresh()
    await state.follower.refresh()
    asking = asker.identity
    every = [one async for one in in_turns(state.cursors.listed()) if is_visible_to(one.interest, asking)]
    now = time.time_ns() // 1_000_000
    listed = []
    async for cursor in in_turns([one for one in every if one.name > after][:limit]):
        reader = state.cursors.reader(cursor.name)
        lag = state.engine.distance(cursor.acked, state.feed.head)
        listed.append(
            {
                "name": cursor.name,
                "patterns": patterns(cursor.interest),
                "acked": cursor.acked,
                "lag": lag,
                "lag_s": round((now - cursor.acked_at) / 1000, 1) if lag else 0.0,
                "acked_at": moment.shown(cursor.acked_at),
                "peer": reader.receiver.peer if reader else None,
            }
        )
    return {"total": len(every), "cursors": listed}


async def forget(arguments: list[str], state: State, asker: Asker) -> Answer:
    if len(arguments) != 1:
        raise BadCommand(replies.missing_argument("a name is missing", FORGET_USAGE))
    (name,) = arguments
    await state.cursors.refresh()
    cursor = state.cursors.get(name)
    if cursor and not is_visible_to(cursor.interest, asker.identity):
        return {"name": name, "forgotten": False}
    if reader := state.cursors.reader(name):
        state.feed.fail(reader, replies.forgotten(asker.peer, name))
    forgotten = state.cursors.forget(name)
    await state.cursors.on_disk(name)
    return {"name": name, "forgotten": forgotten}
