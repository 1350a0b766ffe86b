"""Acks of a known client at a fixed rate, quiet and while strangers flood the server with TLS handshakes.

The strangers stand for other machines. So the server has a core to itself, and the strangers share the sender's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import command, latency, offered, tls, workload
from bench.peers.peer import NotRun
from bench.process import Server


def add_command(commands: command.Commands) -> None:
    """Add ``handshakes`` to the commands of the bench."""
    one = commands.add_parser("handshakes", help="acks while strangers flood the server with TLS handshakes")
    one.set_defaults(run=_run)
    one.add_argument("--rate", type=float, default=5000, help="events/s of the known client (%(default)s)")
    one.add_argument("--handshakes", type=float, default=2000, help="handshakes/s of the strangers (%(default)s)")
    one.add_argument("--seconds", type=float, default=10, help="how long both go on (%(default)s)")
    command.add_common(one, runs=5)


def _run(options: argparse.Namespace) -> int:
    try:
        with _cores() as cores:
            return command.repeat(
                "handshakes", options, lambda number, folder: _one_run(options, number, folder, *cores)
            )
    except NotRun as error:
        raise SystemExit(str(error)) from error


@contextmanager
def _cores() -> Iterator[tuple[int, int]]:
    """The server's core, and that of the sender and the strangers. Raises NotRun."""
    all_cores = os.sched_getaffinity(0)
    if len(all_cores) < 2:
        raise NotRun("two cores are needed: the strangers must not take the server's")
    try:
        servers, others, *_ = sorted(all_cores)
        yield servers, others
    finally:
        os.sched_setaffinity(0, all_cores)


def _one_run(options: argparse.Namespace, number: int, folder: Path, servers: int, others: int) -> dict[str, Any]:
    own = folder / str(number)
    own.mkdir()
    certificate, key = tls.make_certificate(own)
    os.sched_setaffinity(0, {servers})  # the server inherits it
    figures: dict[str, Any] = {}
    with Server(own, "--tls-host", "127.0.0.1", "--tls-port", "0", "--tls-cert", certificate, "--tls-key", key) as one:
        os.sched_setaffinity(0, {others})
        _offer(options, one, 0)  # while the WAL still grows, each fsync takes longer
        figures["quiet"] = _offer(options, one, 1)
        started, cpu_s = time.monotonic(), one.cpu_s
        with subprocess.Popen(
            [sys.executable, "-m", "bench.strangers", str(one.tls_port), str(options.handshakes)],
            stdout=subprocess.PIPE, text=True,
        ) as strangers:  # fmt: skip
            figures["flooded"] = flooded = _offer(options, one, 2)
            flooded["server_cpu"] = round((one.cpu_s - cpu_s) / (time.monotonic() - started), 2)
            strangers.terminate()
            begun, answered = map(int, strangers.communicate()[0].split())
        for name, count in (("begun", begun), ("answered", answered)):
            flooded[f"handshakes_{name}_per_s"] = round(count / (time.monotonic() - started))
    figures["flooded_over_quiet"] = {
        name: round(figures["flooded"][name] / figures["quiet"][name], 2) for name in ("p50_ms", "p99_ms")
    }
    return figures


def _offer(options: argparse.Namespace, server: Server, part: int) -> dict[str, Any]:
    count = int(options.rate * options.seconds)
    work = workload.generate(count, 0, offered.CONNECTIONS, "random", part * count)
    return latency.at_rate(server.port, work, options.rate)
