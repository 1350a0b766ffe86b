"""Throughput: every event is sent as fast as the server takes it, and every ack is awaited.

Acks are checked by their number: if nothing is lost and nothing is stored twice, ``stored`` is the number of distinct
events and ``duplicate`` is the number of repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import orjson
import uvloop

from aggregator.cli.parser import address
from aggregator.client import ask
from bench import ceiling, command, workload
from bench.process import Server
from bench.workload import Workload

CHUNK_BYTES: Final = 64 * 1024
"""Bytes handed to the socket at a time: a sender with much to send does not send line by line."""

STALL_S: Final = 60.0
"""If no ack comes for so long, the server hangs and the run has failed."""


@dataclass(slots=True)
class Acks:
    """The number of replies by status."""

    stored: int = 0
    duplicate: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        return self.stored + self.duplicate + self.other


class _Client(asyncio.Protocol):
    """A connection that counts its replies."""

    def __init__(self, acks: Acks, total: int, done: asyncio.Event) -> None:
        self._acks = acks
        self._total = total
        self._done = done
        self._rest = b""
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
        if acks.total >= self._total:
            self._done.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done.set()


def measure(host: str, port: int, workload: Workload, context: ssl.SSLContext | None = None) -> dict[str, Any]:
    """Send everything and wait for every ack; over TLS if there is a ``context``."""
    return uvloop.run(_measure(host, port, workload, context))


async def _measure(host: str, port: int, workload: Workload, context: ssl.SSLContext | None) -> dict[str, Any]:
    chunks = [_chunks(lines) for lines in workload.lines]
    acks, done, clients = await _connect(host, port, len(workload.lines), workload.count, context)
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


async def _connect(
    host: str, port: int, count: int, total: int, context: ssl.SSLContext | None = None
) -> tuple[Acks, asyncio.Event, list[_Client]]:
    acks, done = Acks(), asyncio.Event()
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(count):
        _, client = await loop.create_connection(lambda: _Client(acks, total, done), host, port, ssl=context)
        clients.append(client)
    return acks, done, clients


def _close(clients: list[_Client]) -> None:
    for one in clients:
        one.transport.close()


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


def add_command(commands: command.Commands) -> None:
    """Add ``load`` to the commands of the bench."""
    one = commands.add_parser("load", help="throughput, against the append ceiling of the same run")
    one.set_defaults(run=_run)
    one.add_argument("--events", type=int, default=1_000_000, help="events a run (%(default)s)")
    one.add_argument("--dup", type=float, default=0.25, help="part of the events that is sent twice (%(default)s)")
    one.add_argument("--connections", type=int, default=4, help="connections (%(default)s)")
    one.add_argument("--ids", choices=("random", "ordered"), help="UUIDv4 or UUIDv7 (each in turn)")
    one.add_argument(
        "--to", type=address, metavar="HOST:PORT", help="a running server instead of one started for each run"
    )
    command.add_common(one, runs=5)


def _run(options: argparse.Namespace) -> int:
    kinds: list[workload.IdKind] = [options.ids] if options.ids else ["random", "ordered"]

    def one_run(number: int, folder: Path) -> dict[str, Any]:
        return {kind: _one_run(options, kind, number, folder) for kind in kinds}

    return command.repeat("load", options, one_run)


def _one_run(options: argparse.Namespace, ids: workload.IdKind, number: int, folder: Path) -> dict[str, Any]:
    """Ceiling, throughput, and the ceiling again, because machines slow down after a burst."""
    work = workload.generate(options.events, options.dup, options.connections, ids, number * options.events)
    lines = list(itertools.chain.from_iterable(work.lines))[: ceiling.MAX_LINES]
    before = ceiling.append_rate(folder, lines)
    if options.to:
        host, port = options.to
        figures = measure(host, port, work)
        stats = asyncio.run(ask(host, port, "STATS", STALL_S))
    else:
        own = folder / f"{number}-{ids}"
        own.mkdir()
        with Server(own) as server:
            cpu_s = server.cpu_s
            figures = measure("127.0.0.1", server.port, work)
            figures["server_cpu_us_per_event"] = round((server.cpu_s - cpu_s) / work.count * 1e6, 2)
            figures["server_rss_mb"] = round(server.rss_bytes / 1e6, 1)
            stats = asyncio.run(ask("127.0.0.1", server.port, "STATS", STALL_S))
    figures["stats"] = orjson.loads(stats)
    ceilings = [before, ceiling.append_rate(folder, lines)]
    figures["ceilings_per_s"] = [round(one) for one in ceilings]
    figures["ceiling_per_s"] = round(sum(ceilings) / 2)
    figures["of_ceiling"] = round(figures["events_per_s"] / figures["ceiling_per_s"], 4)
    return figures
