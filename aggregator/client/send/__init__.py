"""``aggregator send``: from its options to its exit code."""

from __future__ import annotations

import socket

import orjson

from aggregator.client.reply import reason
from aggregator.client.screen import Screen
from aggregator.client.send.options import SendOptions
from aggregator.client.send.rejects import CannotKeep
from aggregator.client.send.run import Run
from aggregator.client.send.state import BadState
from aggregator.client.send.wrap import JsonEvents, TextEvents, Wrap
from aggregator.wire import Rejection, rules


async def send(options: SendOptions) -> int:
    """Send until every event has its final reply; return the exit code."""
    screen = Screen()
    try:
        code = await _send(options, screen)
    finally:
        screen.close()
    return code or int(screen.failed)


async def _send(options: SendOptions, screen: Screen) -> int:
    source = socket.gethostname() if options.source is None else options.source
    wrap = _wrap(options, source)
    if wrap and (mistake := _mistake(wrap)):
        screen.say(f"aggregator: {mistake}")
        return 2
    try:
        run = Run(options, source, wrap, screen)
    except CannotKeep as error:
        why = str(error)
    except (BadState, OSError) as error:
        why = f"{options.state}: {reason(error) if isinstance(error, OSError) else error}"
    else:
        return await run.run()
    screen.say(f"aggregator: {why}")
    return 1


def _wrap(options: SendOptions, source: str) -> Wrap | None:
    """What makes events of lines; None if the lines are events already."""
    if not options.json and options.topic is None:
        return None
    text = TextEvents(options.topic, source, options.takes_stamps)
    if not options.json:
        return text
    return JsonEvents(text, options.id_field, options.time_field, options.topic_field)


def _mistake(wrap: Wrap) -> str | None:
    """What is wrong with the topic or the source."""
    try:
        found = rules.parse(wrap.sample())
    except orjson.JSONEncodeError as error:
        return str(error)
    return found.detail if isinstance(found, Rejection) else None
