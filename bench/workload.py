"""The events that are sent: about 240 bytes each, with random or ordered ids, some of them sent twice.

Each event is made from its number alone, so that any event of a history of millions can be made and sent again.
"""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass
from typing import Final, Literal

IdKind = Literal["random", "ordered"]

TOPICS: Final = tuple(f"app.service-{number}" for number in range(20))
STARTED_MS: Final = 1_790_000_000_000
PER_MS: Final = 100
"""After so many events, ordered ids and timestamps advance by one millisecond."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The lines to send on each connection, and how many of them are new."""

    lines: list[list[bytes]]
    unique: int

    @property
    def count(self) -> int:
        return sum(map(len, self.lines))


def generate(
    count: int, duplicates: float, connections: int, ids: IdKind, first: int = 0, oldest: int | None = None
) -> Workload:
    """Make ``count`` lines for so many connections; the part ``duplicates`` repeats an earlier event of any of them.

    New events are numbered from ``first``. Repeated events have any number from ``oldest`` on, or from ``first`` if
    ``oldest`` is None. The same arguments give the same lines.
    """
    source = random.Random(first)
    oldest = first if oldest is None else oldest
    following = first
    lines: list[list[bytes]] = [[] for _ in range(connections)]
    for place in range(count):
        if following > oldest and source.random() < duplicates:
            number = source.randrange(oldest, following)
        else:
            number = following
            following += 1
        lines[place % connections].append(line(number, ids))
    return Workload(lines, following - first)


def topic(number: int) -> str:
    """The topic of an event."""
    return TOPICS[number * 7 % len(TOPICS)]


def event_id(number: int, kind: IdKind) -> str:
    """A UUIDv4, or a UUIDv7 of the event's moment (RFC 9562): ordered in time, random within the millisecond."""
    text = hashlib.blake2b(number.to_bytes(8), digest_size=16).hexdigest()
    if kind == "ordered":
        text = f"{STARTED_MS + number // PER_MS:012x}7{text[13:]}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-8{text[17:20]}-{text[20:]}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-8{text[17:20]}-{text[20:]}"


def line(number: int, kind: IdKind) -> bytes:
    """The event with this number, as it is sent."""
    second, milliseconds = divmod(STARTED_MS + number // PER_MS, 1000)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return (
        f'{{"topic":"{topic(number)}","event_id":"{event_id(number, kind)}","timestamp":"{moment}.{milliseconds:03}Z",'
        f'"source":"host-{number % 7}","payload":{{"level":"info","request":{number},'
        f'"message":"GET /api/v1/items/{number} answered 200 in {number * 31 % 900} ms"}}}}\n'
    ).encode()


def json_line(number: int) -> bytes:
    """The same request as a common logging library writes it: JSON that is not an event."""
    milliseconds = STARTED_MS + number // PER_MS
    return (
        f'{{"level":30,"time":{milliseconds},"pid":{number % 7},"hostname":"host-{number % 7}","request":{number},'
        f'"method":"GET","path":"/api/v1/items/{number}","status":200,"duration_ms":{number * 31 % 900},'
        f'"trace":"{event_id(number, "random")}","msg":"GET /api/v1/items/{number} answered 200"}}\n'
    ).encode()


def syslog_line(number: int) -> bytes:
    """The same request as rsyslog forwards it by default (RFC 3164)."""
    moment = time.strftime("%b %e %H:%M:%S", time.gmtime((STARTED_MS + number // PER_MS) // 1000))
    return (
        f"<134>{moment} host-{number % 7} service-{number % 20}[{number % 7}]: GET /api/v1/items/{number} "
        f"answered 200 in {number * 31 % 900} ms, request {number}, trace {event_id(number, 'random')}, level info\n"
    ).encode()
