"""Throughput: every event sent as fast as the server takes it, every ack awaited. Latency: at an offered rate.

Acks are checked by their number: with nothing lost and nothing stored twice, ``stored`` is the number of distinct
events and ``duplicate`` the number of repeats.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, cast

import uvloop

from bench.workload import Workload

CHUNK_BYTES: Final = 64 * 1024
"""Bytes handed to the socket at a time: a sender that has much to send does not send line by line."""

TICK_S: Final = 0.001
"""Events of an offered rate are sent in steps of this length; each is timed from the moment it was due, so that a
server that stalls is charged for every event that would have been sent meanwhile."""

STALL_S: Final = 60.0
"""No ack for so long: the server hangs, and the run has failed."""


@dataclass(slots=True)
class Acks:
    """Replies by status, and the latencies in seconds where they were taken."""

    stored: int = 0
    duplicate: int = 0
    other: int = 0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.stored + self.duplicate + self.other


class _Client(asyncio.Protocol):
    """One connection that counts its replies; ``due`` has the moment at which each unanswered event was due."""

    def __init__(self, acks: Acks, total: int, done: asyncio.Event) -> None:
        self._acks = acks
        self._total = total
        self._done = done
        self._rest = b""
        self.due: deque[float] | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        complete, _, self._rest = (self._rest + data).rpartition(b"\n")
        lines = complete.count(b"\n") + 1 if complete else 0
        acks = self._acks
        stored = complete.count(b'{"status":"stored"')
        duplicate = complete.count(b'{"status":"duplicate"')
        acks.stored += stored
        acks.duplicate += duplicate
        acks.other += lines - stored - duplicate
        if self.due is not None:
            now = time.perf_counter()
            acks.latencies_s += [now - self.due.popleft() for _ in range(lines)]
        if acks.total >= self._total:
            self._done.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done.set()


def throughput(host: str, port: int, workload: Workload) -> dict[str, Any]:
    """Send everything, wait for every ack."""
    return uvloop.run(_throughput(host, port, workload))


async def _throughput(host: str, port: int, workload: Workload) -> dict[str, Any]:
    chunks = [_chunks(lines) for lines in workload.lines]
    acks, done, clients = await _connect(host, port, len(workload.lines), workload.count)
    started = time.perf_counter()
    senders = [asyncio.create_task(_send_all(*one)) for one in zip(clients, chunks, strict=True)]
    await _acked(acks, done, workload.count)
    seconds = time.perf_counter() - started
    for sender in senders:
        await sender
    _close(clients)
    return {
        "events": workload.count,
        "seconds": round(seconds, 4),
        "events_per_s": round(workload.count / seconds),
        "stored": acks.stored,
        "duplicate": acks.duplicate,
        "errors": acks.other,
        "expected_stored": workload.unique,
        "exact": acks.stored == workload.unique and acks.total == workload.count and not acks.other,
    }


def latency(host: str, port: int, workload: Workload, rate: float) -> dict[str, Any]:
    """Offer ``rate`` events a second over all connections; ack latency counts from when each event was due."""
    return uvloop.run(_latency(host, port, workload, rate))


async def _latency(host: str, port: int, workload: Workload, rate: float) -> dict[str, Any]:
    acks, done, clients = await _connect(host, port, len(workload.lines), workload.count)
    for client in clients:
        client.due = deque()
    queues = [iter(lines) for lines in workload.lines]
    started = time.perf_counter()
    sent = 0
    while sent < workload.count:
        due_count = min(workload.count, int((time.perf_counter() - started) * rate) + 1)
        pieces: dict[int, list[bytes]] = {}
        for number in range(sent, due_count):
            which = number % len(clients)
            pieces.setdefault(which, []).append(next(queues[which]))
            cast(deque[float], clients[which].due).append(started + number / rate)
        for which, lines in pieces.items():
            clients[which].transport.write(b"".join(lines))
        sent = due_count
        await asyncio.sleep(TICK_S)
    await _acked(acks, done, workload.count)
    seconds = time.perf_counter() - started
    _close(clients)
    ordered = sorted(acks.latencies_s)
    return {
        "events": workload.count,
        "offered_per_s": rate,
        "achieved_per_s": round(workload.count / seconds),
        "errors": acks.other,
        **{f"p{part:g}_ms": round(_percentile(ordered, part) * 1000, 3) for part in (50, 90, 99, 99.9, 100)},
    }


async def _connect(host: str, port: int, count: int, total: int) -> tuple[Acks, asyncio.Event, list[_Client]]:
    acks, done = Acks(), asyncio.Event()
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(count):
        _, client = await loop.create_connection(lambda: _Client(acks, total, done), host, port)
        clients.append(client)
    return acks, done, clients


def _close(clients: list[_Client]) -> None:
    for client in clients:
        client.transport.close()


async def _send_all(client: _Client, chunks: list[bytes]) -> None:
    for chunk in chunks:
        await client.writable.wait()
        client.transport.write(chunk)


async def _acked(acks: Acks, done: asyncio.Event, total: int) -> None:
    seen = -1
    while not done.is_set():
        if acks.total == seen:
            raise SystemExit(f"no ack for {STALL_S} s: {acks.total} of {total} so far")
        seen = acks.total
        try:
            await asyncio.wait_for(done.wait(), STALL_S)
        except TimeoutError:
            continue


def _chunks(lines: list[bytes]) -> list[bytes]:
    chunks: list[bytes] = []
    piece: list[bytes] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= CHUNK_BYTES:
            chunks.append(b"".join(piece))
            piece, size = [], 0
    return [*chunks, b"".join(piece)] if piece else chunks


def _percentile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part / 100))]
