"""Ack latency: one event in flight, and at an offered rate, with coordinated omission avoided.

At an offered rate every event has a moment at which it is due, whatever the server does, and its latency counts from
that moment: a server that stalls is charged for every event that would have been sent meanwhile. It is offered from one
thread that waits in ``select``, for an event loop's timers have a resolution of a millisecond.
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

STEP_S: Final = 0.001
"""At rates above one event in this time, events go out in steps of this length, as from a sender with a buffer."""

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
    connections = [_Connection(port, lines) for lines in workload.lines]
    sockets = {connection.socket: connection for connection in connections}
    count, width = workload.count, len(connections)
    step = max(1, int(rate * STEP_S))
    started = time.perf_counter() + 0.01
    last_progress = started
    due = 0
    while any(connection.missing for connection in connections):
        wait_s = STALL_S if due == count else max(0.0, started + due / rate - time.perf_counter())
        pending = [connection.socket for connection in connections if connection.unsent]
        readable, writable, _ = select.select(sockets, pending, [], wait_s)
        now = time.perf_counter()
        for one in readable:
            sockets[one].receive(now)
            last_progress = now
        if due < count and now >= started + due / rate:
            due = min(count, max(due + step, int((now - started) * rate) + 1))
            for which, connection in enumerate(connections):
                connection.send_until((due - which + width - 1) // width)
        for one in writable:
            sockets[one].send_more()
        if now - last_progress > STALL_S:
            break
    seconds = time.perf_counter() - started
    for connection in connections:
        connection.socket.close()
    latencies_s = [
        moment - (started + (place * width + which) / rate)
        for which, connection in enumerate(connections)
        for place, moment in enumerate(connection.arrived)
        if place * width + which >= count * WARM_UP
    ]
    return {
        "events": len(latencies_s),
        "offered_per_s": rate,
        "achieved_per_s": round(count / seconds),
        "errors": sum(connection.errors + connection.missing for connection in connections),
        **percentiles(latencies_s),
    }


class _Connection:
    """Sends its lines when told to, never waiting for the server, and keeps when each ack arrived."""

    def __init__(self, port: int, lines: list[bytes]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), STALL_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.arrived: list[float] = []
        self.errors = 0
        self.unsent = b""
        self._lines = lines
        self._sent = 0
        self._rest = b""

    @property
    def missing(self) -> int:
        return len(self._lines) - len(self.arrived)

    def send_until(self, place: int) -> None:
        if place > self._sent:
            self.unsent += b"".join(self._lines[self._sent : place])
            self._sent = place
            self.send_more()

    def send_more(self) -> None:
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            return

    def receive(self, now: float) -> None:
        data = self.socket.recv(1 << 18)
        if not data:
            raise SystemExit("the server closed a connection")
        complete, _, self._rest = (self._rest + data).rpartition(b"\n")
        count = complete.count(b"\n") + 1 if complete else 0
        self.arrived += [now] * count
        self.errors += count - complete.count(b'{"status":"stored"') - complete.count(b'{"status":"duplicate"')


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
