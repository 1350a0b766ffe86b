"""TLS compared with plain TCP: the same server and the same events, one after the other; each comes first in turn.

The sender does TLS too, which on a machine with few cores takes time from the server. So the server's own processor
time for an event is measured as well.
"""

from __future__ import annotations

import argparse
import contextlib
import ssl
import subprocess
from pathlib import Path
from typing import Any, Final, TypeAlias

from bench import command, latency, load, workload
from bench.process import Server

IN_FLIGHT: Final = 2000
"""How many events are sent one at a time over each, always after the ack of the event before."""

Ways: TypeAlias = dict[str, tuple[int, ssl.SSLContext | None]]


def add_command(commands: command.Commands) -> None:
    """Add ``tls`` to the commands of the bench."""
    one = commands.add_parser("tls", help="throughput and latency over TLS, beside plain TCP")
    one.set_defaults(run=_run)
    one.add_argument(
        "--events", type=int, default=500_000, help="events over TLS, and over TCP, in a run (%(default)s)"
    )
    one.add_argument("--connections", type=int, default=4, help="connections (%(default)s)")
    command.add_common(one, runs=6)


def _run(options: argparse.Namespace) -> int:
    return command.repeat("tls", options, lambda number, folder: _one_run(options, number, folder))


def _one_run(options: argparse.Namespace, number: int, folder: Path) -> dict[str, Any]:
    own = folder / str(number)
    own.mkdir()
    certificate, key = make_certificate(own)
    figures: dict[str, Any] = {}
    with Server(own, "--tls-host", "127.0.0.1", "--tls-port", "0", "--tls-cert", certificate, "--tls-key", key) as one:
        ways: Ways = {"plain": (one.port, None), "tls": (one.tls_port, _context(certificate))}
        names = list(ways)[:: -1 if number % 2 else 1]
        for place, name in enumerate(names):
            port, context = ways[name]
            work = workload.generate(options.events, 0, options.connections, "random", place * options.events)
            cpu_s = one.cpu_s
            figures[name] = load.measure("127.0.0.1", port, work, context)
            figures[name]["server_cpu_us_per_event"] = round((one.cpu_s - cpu_s) / work.count * 1e6, 2)
        for name, latencies_s in _in_turns(ways, 2 * options.events).items():
            figures[name]["one_in_flight"] = latency.counted(latencies_s)
    plain, tls = figures["plain"], figures["tls"]
    figures["tls_over_plain"] = {
        "events_per_s": round(tls["events_per_s"] / plain["events_per_s"], 4),
        "server_cpu": round(tls["server_cpu_us_per_event"] / plain["server_cpu_us_per_event"], 4),
        "one_in_flight_p50": round(tls["one_in_flight"]["p50_ms"] / plain["one_in_flight"]["p50_ms"], 4),
    }
    return figures


def _in_turns(ways: Ways, first: int) -> dict[str, list[float]]:
    """One event in flight, over each connection in turn, so that other load on the machine affects both."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    lines = iter(workload.generate(IN_FLIGHT * len(ways), 0, 1, "random", first).lines[0])
    with contextlib.ExitStack() as stack:
        connections = {}
        for name, (port, context) in ways.items():
            connection = latency.connected(port)
            if context:
                connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
            connections[name] = stack.enter_context(connection)
        for _ in range(IN_FLIGHT):
            for name, connection in connections.items():
                found[name].append(latency.ack_s(connection, next(lines)))
    return found


def make_certificate(folder: Path) -> tuple[str, str]:
    """A certificate for loopback and its key, as paths."""
    certificate, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def _context(certificate: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)
