"""The newest events, page by page: what ``tail -n`` begins with."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from aggregator import json_text
from aggregator.client import query
from aggregator.client.ask import ask
from aggregator.client.connect import Server
from aggregator.client.delivered import DeliveredEvent
from aggregator.client.outage import Outage
from aggregator.client.query import Position
from aggregator.client.reply import decode, reason
from aggregator.client.subscription import Refused
from aggregator.wire import Status, Word

PAGE_EVENTS: Final = 1000
"""The most events that the server gives in one answer."""

TIMEOUT_S: Final = 10.0

_EVENTS: Final = '"events":'


class Newest(NamedTuple):
    """Events, the oldest first; the newest position of the store at that time; whether older events may be missing."""

    events: list[DeliveredEvent]
    head: Position | None
    is_cut: bool


class Pages:
    """Asks one server for events."""

    def __init__(self, server: Server, patterns: Sequence[str], options: Mapping[str, object], outage: Outage):
        self._server = server
        self._patterns, self._options = patterns, options
        self._outage = outage

    async def newest(self, count: int) -> Newest:
        """The ``count`` newest events. Raises Refused, GaveUp, NotOurProtocol, ValueError."""
        found: list[DeliveredEvent] = []
        head: Position | None = None
        before: Position | None = None
        while len(found) < count:
            page, fields = await self._page(min(count - len(found), PAGE_EVENTS), before)
            head = fields["seq"] if head is None else head
            found += page
            before = fields.get("before", page[-1].seq if page else None)  # a store with several lanes sends it
            if not page or (len(page) < PAGE_EVENTS and len(found) < count and not fields.get("truncated")):
                return Newest(found[::-1], head, bool(fields.get("truncated")))
        return Newest(found[::-1], head, False)

    async def _page(self, count: int, before: Position | None) -> tuple[list[DeliveredEvent], dict[str, Any]]:
        command = query.line(Word.EVENTS, self._patterns, {"BEFORE": before, **self._options}, count)
        reply = await self._ask(command.decode().removesuffix("\n"))
        text = reply.decode()
        start = text.index(_EVENTS) + len(_EVENTS)  # inside a string it would have backslashes
        return [DeliveredEvent(one.encode()) for one in json_text.elements(text, start)], decode(reply)

    async def _ask(self, command: str) -> bytes:
        while True:
            try:
                server = self._server
                reply = await ask(server.host, server.port, command, TIMEOUT_S, ssl=server.ssl, token=server.token)
            except OSError as error:
                trouble = reason(error)
            else:
                fields = decode(reply)
                if fields["status"] == Status.OK:
                    self._outage.over()
                    return reply
                if fields["status"] == Status.REJECTED:
                    raise Refused(str(fields.get("detail")))
                trouble = f"{fields.get('code')}: {fields.get('detail')}"
            await asyncio.sleep(self._outage.pause_s(trouble))
