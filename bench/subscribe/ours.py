"""This project's server."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench import latency, load
from bench.channel import Channel
from bench.process import Server
from bench.subscribe.system import Caught, System
from bench.subscribe.tally import STALL_S, Tally
from bench.workload import Workload

CONNECTIONS: Final = 1400
"""So many that a thousand readers fit: subscribers may take three quarters of the connections."""

PAGE: Final = 1000
"""How many events one EVENTS asks for: the most that it may."""

OPTIONS: Final = ("--max-connections", f"{CONNECTIONS}", "--address-connections", f"{CONNECTIONS}")

SENDERS: Final = 4


class Ours(System):
    mark = b'{"status":"event"'
    greeting = b"SUBSCRIBE *\n"
    ready = b'"caught_up"'

    def versions(self) -> dict[str, str]:
        return {}

    def fill(self, lines: list[bytes]) -> None:
        dealt = [lines[first::SENDERS] for first in range(SENDERS)]
        stored = load.measure("127.0.0.1", self.port, Workload(dealt, len(lines)))
        if not stored["exact"]:
            raise RuntimeError(f"the store was not filled: {stored}")

    def catch_up(self, expected: int, pattern: str = "*", head: int | None = None) -> Caught:
        """Read the topics that match; ``head`` is the store's newest seq, if it is not the number of events."""
        tally = Tally(self.mark)
        with socket.create_connection(("127.0.0.1", self.port), STALL_S) as connection:
            started = time.perf_counter()
            connection.sendall(f"SUBSCRIBE {pattern} AFTER 0\n".encode())
            tally.read_until(connection, lambda: tally.lines - tally.events == 2)  # the reply, and caught_up
            seconds = time.perf_counter() - started
        at_end = tally.last.endswith(b'{"status":"caught_up","seq":%d}\n' % (head or expected))
        return Caught(seconds, tally.events, at_end and tally.events == expected)

    def poll(self, expected: int, topic: str) -> Caught:
        """Read the events of one topic by asking for page after page."""
        tally, seq = Tally(b'{"topic":"'), b"0"
        with socket.create_connection(("127.0.0.1", self.port), STALL_S) as connection:
            started = time.perf_counter()
            for page in range(1, expected // PAGE + 2):
                connection.sendall(b"EVENTS %b %d AFTER %b\n" % (topic.encode(), PAGE, seq))
                tally.read_until(connection, lambda page=page: tally.lines == page)  # type: ignore[misc]
                seq = tally.last[tally.last.rindex(b":") + 1 :].rstrip(b"}\n")
            seconds = time.perf_counter() - started
        return Caught(seconds, tally.events, tally.events == expected)

    def channel(self, lines: list[bytes]) -> Channel:
        return latency.channel(self.port, lines)


@contextmanager
def start(folder: Path) -> Iterator[Ours]:
    """A server with room for a thousand readers."""
    with Server(folder, *OPTIONS) as server:
        yield Ours(server.pid, server.port)
