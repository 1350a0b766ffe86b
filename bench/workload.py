"""The events that are sent: about 240 bytes each, with random or ordered ids, a part of them sent twice."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Final, Literal

IdKind = Literal["random", "ordered"]

TOPICS: Final = tuple(f"app.service-{number}" for number in range(20))
SEED: Final = 1


@dataclass(frozen=True, slots=True)
class Workload:
    """The lines to send on each connection, and how many of them are new."""

    lines: list[list[bytes]]
    unique: int

    @property
    def count(self) -> int:
        return sum(map(len, self.lines))


def generate(count: int, duplicates: float, connections: int, ids: IdKind, first: int = 0) -> Workload:
    """Make ``count`` lines for so many connections; the part ``duplicates`` repeats an earlier event of any of them.

    ``first`` keeps the ids of several workloads apart. The same arguments give the same lines.
    """
    source = random.Random(SEED + first)
    started_ms = 1_790_000_000_000 + first
    unique: list[bytes] = []
    lines: list[list[bytes]] = [[] for _ in range(connections)]
    for number in range(count):
        if unique and source.random() < duplicates:
            line = unique[source.randrange(len(unique))]
        else:
            line = _event(first + number, _id(source, ids, started_ms + number // 100), source)
            unique.append(line)
        lines[number % connections].append(line)
    return Workload(lines, len(unique))


def _id(source: random.Random, kind: IdKind, now_ms: int) -> str:
    """A UUIDv4, or a UUIDv7 of that moment (RFC 9562): ordered in time, random within the millisecond."""
    bits = source.getrandbits(128)
    if kind == "ordered":
        bits = now_ms << 80 | bits & (1 << 80) - 1
    version = 7 if kind == "ordered" else 4
    bits = bits & ~(0xF << 76) | version << 76
    bits = bits & ~(0x3 << 62) | 0x2 << 62
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _event(number: int, event_id: str, source: random.Random) -> bytes:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_790_000_000 + number // 1000))
    return (
        f'{{"topic":"{source.choice(TOPICS)}","event_id":"{event_id}","timestamp":"{moment}.{number % 1000:03}Z",'
        f'"source":"host-{number % 7}","payload":{{"level":"info","request":{number},'
        f'"message":"GET /api/v1/items/{number} answered 200 in {source.randrange(1, 900)} ms"}}}}\n'
    ).encode()
