"""Ack latency: one event in flight, at an offered rate, and at half of peak."""

from __future__ import annotations

import argparse
import socket
import time
from pathlib import Path
from typing import Any, Final

from bench import ceiling, command, load, offered, workload
from bench.channel import SocketChannel
from bench.percentiles import percentiles
from bench.process import Server
from bench.workload import Workload

STALL_S: Final = 60.0
"""If no ack comes for so long, the server hangs and the run has failed."""

PEAK_CONNECTIONS: Final = 8
"""How many connections offer half of peak; each sends many events at a time."""

ACK: Final = b'"seq":'
"""Occurs exactly once in each ack of ours, and never in a rejection or an error."""


def in_turn(port: int, lines: list[bytes]) -> dict[str, Any]:
    """The latency of one connection with one event in flight."""
    with connected(port) as connection:
        return counted([ack_s(connection, line) for line in lines])


def connected(port: int) -> socket.socket:
    """A connection for single events."""
    connection = socket.create_connection(("127.0.0.1", port), STALL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def ack_s(connection: socket.socket, line: bytes) -> float:
    """Send an event; return how long its ack took."""
    started = time.perf_counter()
    connection.sendall(line)
    reply = connection.recv(4096)
    took_s = time.perf_counter() - started
    if ACK not in reply or not reply.endswith(b"\n"):
        raise SystemExit(f"not an ack: {reply.decode()}")
    return took_s


def counted(latencies_s: list[float]) -> dict[str, Any]:
    """The percentiles of all latencies but the first ones."""
    latencies_s = latencies_s[int(len(latencies_s) * offered.WARM_UP) :]
    return {"events": len(latencies_s), **percentiles(latencies_s)}


def at_rate(port: int, workload: Workload, rate: float) -> dict[str, Any]:
    """Offer ``rate`` events a second over all connections of the workload, in turn."""
    return offered.offer([channel(port, lines) for lines in workload.lines], rate)


def channel(port: int, lines: list[bytes]) -> SocketChannel:
    """A connection to our server for these lines."""
    return SocketChannel(socket.create_connection(("127.0.0.1", port), STALL_S), lines, ACK)


def add_command(commands: command.Commands) -> None:
    """Add ``latency`` to the commands of the bench."""
    one = commands.add_parser("latency", help="ack latency: one event in flight, at a rate, and at half of peak")
    one.set_defaults(run=_run)
    one.add_argument("--rate", type=float, default=5000, help="offered rate, events/s (%(default)s)")
    one.add_argument(
        "--connections", type=int, default=offered.CONNECTIONS, help="connections for single events (%(default)s)"
    )
    one.add_argument("--seconds", type=float, default=10, help="how long each rate is offered (%(default)s)")
    one.add_argument("--events", type=int, default=500_000, help="events sent to find the peak (%(default)s)")
    one.add_argument("--dup", type=float, default=0.25, help="part of the events that is sent twice (%(default)s)")
    one.add_argument("--ids", choices=("random", "ordered"), default="random", help="UUIDv4 or UUIDv7 (%(default)s)")
    command.add_common(one, runs=3)


def _run(options: argparse.Namespace) -> int:
    return command.repeat("latency", options, lambda number, folder: _one_run(options, number, folder))


def _one_run(options: argparse.Namespace, number: int, folder: Path) -> dict[str, Any]:
    def made(count: int, connections: int, first: int) -> Workload:
        return workload.generate(count, options.dup, connections, options.ids, first)

    own = folder / str(number)
    own.mkdir()
    figures: dict[str, Any] = {}
    with Server(own) as server:
        # The peak comes first, so that the WAL has its full size: while the file still grows, each fsync also has to
        # write the file system's own records, and takes two to three times as long.
        peak = load.measure("127.0.0.1", server.port, made(options.events, 4, 0))
        figures["peak"] = {name: peak[name] for name in ("events_per_s", "exact")}
        fsyncs_ms = [ceiling.fdatasync_ms(folder)]
        figures["one_in_flight"] = in_turn(server.port, made(5000, 1, 10_000_000).lines[0])
        fsyncs_ms.append(ceiling.fdatasync_ms(folder))
        work = made(int(options.rate * options.seconds), options.connections, 20_000_000)
        figures["at_rate"] = at_rate(server.port, work, options.rate)
        fsyncs_ms.append(ceiling.fdatasync_ms(folder))
        half = peak["events_per_s"] / 2
        work = made(int(half * options.seconds), PEAK_CONNECTIONS, 30_000_000)
        figures["at_half_of_peak"] = at_rate(server.port, work, half)
    fsync_ms = sorted(fsyncs_ms)[1]
    figures["fdatasync_p50_ms"] = round(fsync_ms, 4)
    figures["in_fdatasyncs"] = {
        "one_in_flight_p50": round(figures["one_in_flight"]["p50_ms"] / fsync_ms, 2),
        "at_rate_p50": round(figures["at_rate"]["p50_ms"] / fsync_ms, 2),
        "at_rate_p99": round(figures["at_rate"]["p99_ms"] / fsync_ms, 2),
    }
    return figures
