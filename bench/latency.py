"""Ack latency: one event in flight, and at an offered rate, with coordinated omission avoided.

At an offered rate every event has a moment at which it is due, whatever the server does, and its latency counts from
that moment: a server that stalls is charged for every event that would have been sent meanwhile. Two threads, one that
sends and one that receives, sleep in the system, for an event loop's timers have a resolution of a millisecond.
"""

from __future__ import annotations

import argparse
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any, Final

from bench import ceiling, command, load, workload
from bench.process import Server
from bench.workload import Workload

STALL_S: Final = 60.0
"""No ack for so long: the server hangs, and the run has failed."""

WARM_UP: Final = 0.05
"""This part of the events is sent first and not counted."""

PARTS: Final = (50, 90, 99, 99.9, 100)


def in_turn(port: int, lines: list[bytes]) -> dict[str, Any]:
    """One connection, one event in flight."""
    latencies_s = []
    with socket.create_connection(("127.0.0.1", port), STALL_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for line in lines:
            started = time.perf_counter()
            connection.sendall(line)
            reply = connection.recv(4096)
            latencies_s.append(time.perf_counter() - started)
            if not reply.startswith((b'{"status":"stored"', b'{"status":"duplicate"')) or not reply.endswith(b"\n"):
                raise SystemExit(f"not an ack: {reply.decode()}")
    counted = latencies_s[int(len(lines) * WARM_UP) :]
    return {"events": len(counted), **percentiles(counted)}


def at_rate(port: int, workload: Workload, rate: float) -> dict[str, Any]:
    """Offer ``rate`` events a second over all connections of the workload, in turn."""
    connections = [socket.create_connection(("127.0.0.1", port), STALL_S) for _ in workload.lines]
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    count, width = workload.count, len(connections)
    arrived: list[list[float]] = [[] for _ in connections]  # on each connection, when its acks came
    errors: list[bytes] = []
    receiver = threading.Thread(target=_receive, args=(connections, workload, arrived, errors))
    receiver.start()
    started = time.perf_counter() + 0.01
    sent = 0
    while sent < count:
        early = started + sent / rate - time.perf_counter()
        if early > 0:
            time.sleep(early)
        due = min(count, int((time.perf_counter() - started) * rate) + 1)
        for which in range(min(width, due - sent)):
            number = sent + which
            own = workload.lines[number % width][number // width : (due - number - 1) // width + number // width + 1]
            connections[number % width].sendall(b"".join(own))
        sent = due
    receiver.join()
    seconds = time.perf_counter() - started
    for connection in connections:
        connection.close()
    latencies_s = [
        moment - (started + (place * width + which) / rate)
        for which, moments in enumerate(arrived)
        for place, moment in enumerate(moments)
        if place * width + which >= count * WARM_UP
    ]
    return {
        "events": len(latencies_s),
        "offered_per_s": rate,
        "achieved_per_s": round(count / seconds),
        "errors": len(errors) + count - sum(map(len, arrived)),
        **percentiles(latencies_s),
    }


def _receive(
    connections: list[socket.socket], workload: Workload, arrived: list[list[float]], errors: list[bytes]
) -> None:
    poll = select.poll()
    which_of = {connection.fileno(): which for which, connection in enumerate(connections)}
    rests = [b""] * len(connections)
    for number in which_of:
        poll.register(number, select.POLLIN)
    missing = workload.count
    while missing > 0:
        ready = poll.poll(STALL_S * 1000)
        if not ready:
            return
        for descriptor, _ in ready:
            which = which_of[descriptor]
            data = connections[which].recv(1 << 18)
            now = time.perf_counter()
            if not data:
                return
            *replies, rests[which] = (rests[which] + data).split(b"\n")
            errors += [one for one in replies if not one.startswith((b'{"status":"stored"', b'{"status":"duplicate"'))]
            arrived[which] += [now] * len(replies)
            missing -= len(replies)


def percentiles(latencies_s: list[float]) -> dict[str, float]:
    """In milliseconds: ``p50_ms`` and so on, ``p100_ms`` being the longest."""
    ordered = sorted(latencies_s)
    return {
        f"p{part:g}_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * part / 100))] * 1000, 3)
        for part in PARTS
    }


class Asker:
    """Asks commands one after another, each on its turn, while something else goes on; ``stop`` gives latencies."""

    def __init__(self, port: int, commands: dict[str, bytes], pause_s: float) -> None:
        self._port = port
        self._commands = commands
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._latencies_s: dict[str, list[float]] = {name: [] for name in commands}
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def stop(self) -> dict[str, dict[str, float]]:
        """The latencies of each command, by its name."""
        self._stop.set()
        self._thread.join()
        return {name: {"count": len(found), **percentiles(found)} for name, found in self._latencies_s.items() if found}

    def _ask(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), STALL_S) as connection:
            while not self._stop.is_set():
                for name, command in self._commands.items():
                    started = time.perf_counter()
                    connection.sendall(command)
                    reply = b""
                    while not reply.endswith(b"\n"):
                        data = connection.recv(1 << 18)
                        if not data:
                            return
                        reply += data
                    self._latencies_s[name].append(time.perf_counter() - started)
                    if not reply.startswith(b'{"status":"ok"'):
                        raise SystemExit(f"{command!r} was answered by {reply[:200]!r}")
                    self._stop.wait(self._pause_s)


def add_command(commands: command.Commands) -> None:
    """Add ``latency`` to the commands of the bench."""
    one = commands.add_parser("latency", help="ack latency: one event in flight, at a rate, and at half of peak")
    one.set_defaults(run=_run)
    one.add_argument("--rate", type=float, default=5000, help="offered, events/s (%(default)s)")
    one.add_argument("--connections", type=int, default=8, help="(%(default)s)")
    one.add_argument("--seconds", type=float, default=10, help="how long each rate is offered (%(default)s)")
    one.add_argument("--events", type=int, default=500_000, help="sent to find the peak (%(default)s)")
    one.add_argument("--dup", type=float, default=0.25, help="part of them sent twice (%(default)s)")
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
        # First, so that the WAL has its size: while the file still grows, each fsync has to write the file system's
        # own records too, and takes two to three times as long.
        peak = load.measure("127.0.0.1", server.port, made(options.events, 4, 0))
        figures["peak"] = {name: peak[name] for name in ("events_per_s", "exact")}
        fsyncs_ms = [ceiling.fdatasync_ms(folder)]
        figures["one_in_flight"] = in_turn(server.port, made(5000, 1, 10_000_000).lines[0])
        fsyncs_ms.append(ceiling.fdatasync_ms(folder))
        offered = made(int(options.rate * options.seconds), options.connections, 20_000_000)
        figures["at_rate"] = at_rate(server.port, offered, options.rate)
        fsyncs_ms.append(ceiling.fdatasync_ms(folder))
        half = peak["events_per_s"] / 2
        offered = made(int(half * options.seconds), options.connections, 30_000_000)
        figures["at_half_of_peak"] = at_rate(server.port, offered, half)
    fsync_ms = sorted(fsyncs_ms)[1]
    figures["fdatasync_p50_ms"] = round(fsync_ms, 4)
    figures["in_fdatasyncs"] = {
        "one_in_flight_p50": round(figures["one_in_flight"]["p50_ms"] / fsync_ms, 2),
        "at_rate_p50": round(figures["at_rate"]["p50_ms"] / fsync_ms, 2),
        "at_rate_p99": round(figures["at_rate"]["p99_ms"] / fsync_ms, 2),
    }
    return figures
