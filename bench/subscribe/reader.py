"""A process that reads over many connections: what it costs, and when what came.

It is a process of its own because the one that sends must not wait for it, nor share its interpreter with it.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import select
import socket
import struct
import time
from array import array
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Final

from bench.subscribe.tally import STALL_S, Tally

READ_BYTES: Final = 64 * 1024
AT_ONCE: Final = 32
"""Connections that are opened at a time. If a server has too many to accept, the kernel drops some of their packets,
and they wait for seconds."""

SPARE_DESCRIPTORS: Final = 64
HEAD_BYTES: Final = 64 * 1024
"""What comes before a reader is ready is shorter."""

_RESET: Final = struct.pack("ii", 1, 0)
"""The end of the process resets its connections. Ours goes on delivering to those that have only closed their half."""

_REFUSALS: Final = (b'{"status":"error"', b'{"status":"rejected"', b"-ERR")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the process is to do."""

    port: int
    readers: int
    greeting: bytes
    """What each connection begins with."""
    ready: bytes
    """What the answer to that contains."""
    mark: bytes
    """What each event has exactly once."""
    expected: int | None = None
    """Events for each reader, after which it is done; None: it reads until it is told to stop."""
    stalled: bool = False
    """Whether nobody reads any more once all are ready."""


@dataclass(slots=True)
class Arrivals:
    """What came over one connection: after each read the moment (``time.perf_counter``) and the events so far."""

    moments: array[float] = field(default_factory=lambda: array("d"))
    counts: array[int] = field(default_factory=lambda: array("L"))
    last: bytes = b""
    """The bytes that came last."""

    @property
    def events(self) -> int:
        return self.counts[-1] if self.counts else 0


@dataclass(frozen=True, slots=True)
class Report:
    """What became of it."""

    readers: list[Arrivals]
    cpu_s: float
    """The process's own, since all readers were ready."""

    @property
    def events(self) -> int:
        """All deliveries."""
        return sum(one.events for one in self.readers)

    @property
    def seconds(self) -> float:
        """From the first read to the last."""
        moments = [(one.moments[0], one.moments[-1]) for one in self.readers if one.moments]
        return max(last for _, last in moments) - min(first for first, _ in moments) if moments else 0.0


class Readers:
    """The process, seen from outside. Entered when all readers are ready."""

    def __init__(self, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_read, args=(plan, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Readers:
        self._hear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error:
            self._process.kill()
        self._pipe.close()
        self._process.join(STALL_S)

    def finish(self) -> Report:
        """Wait until every reader has what it expects."""
        return self._hear()

    def stop(self) -> Report:
        """Read no more."""
        self._pipe.send(None)
        return self._hear()

    def _hear(self) -> Report:
        try:
            if not self._pipe.poll(STALL_S):
                raise RuntimeError(f"the readers did not finish within {STALL_S:g} s")
            said: Report | str = self._pipe.recv()
        except EOFError:
            raise RuntimeError("the process of the readers has died") from None
        if isinstance(said, str):
            raise RuntimeError(said)
        return said


def _read(plan: Plan, pipe: Connection) -> None:
    gc.disable()
    try:
        sockets, tallies = _connect(plan)
        pipe.send(Report([], 0.0))
        cpu_s = time.process_time()
        arrivals = [Arrivals() for _ in sockets]
        if plan.stalled:
            pipe.recv()
        else:
            _read_all(plan, pipe, sockets, tallies, arrivals)
        pipe.send(Report(arrivals, time.process_time() - cpu_s))
        pipe.poll(None)  # connections stay open until the figures are taken
    except EOFError:
        return  # nobody is interested any more
    except (OSError, RuntimeError) as error:
        pipe.send(f"a reader failed: {error}")


def _connect(plan: Plan) -> tuple[list[socket.socket], list[Tally]]:
    """Every reader, when it is ready."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, plan.readers + SPARE_DESCRIPTORS), hard))
    sockets: list[socket.socket] = []
    tallies: list[Tally] = []
    while len(sockets) < plan.readers:
        count = min(AT_ONCE, plan.readers - len(sockets))
        some = [socket.create_connection(("127.0.0.1", plan.port), STALL_S) for _ in range(count)]
        for one in some:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            one.sendall(plan.greeting)
        tallies += [_when_ready(plan, one) for one in some]
        sockets += some
    return sockets, tallies


def _when_ready(plan: Plan, connection: socket.socket) -> Tally:
    tally, head = Tally(plan.mark), b""
    while plan.ready not in head:
        tally.add(connection.recv(READ_BYTES))
        head += tally.last
        if head.startswith(_REFUSALS) or len(head) > HEAD_BYTES:
            raise RuntimeError(f"a reader is not ready: {head[:200]!r}")
    return tally


def _read_all(
    plan: Plan, pipe: Connection, sockets: list[socket.socket], tallies: list[Tally], arrivals: list[Arrivals]
) -> None:
    by_descriptor = {
        one.fileno(): (one.recv, tally, arrived.moments.append, arrived.counts.append)
        for one, tally, arrived in zip(sockets, tallies, arrivals, strict=True)
    }
    poll = select.epoll()
    for descriptor in (pipe.fileno(), *by_descriptor):
        poll.register(descriptor, select.EPOLLIN)
    clock = time.perf_counter
    left = len(sockets)
    expected = plan.expected
    told = False
    while left and not told:
        ready = poll.poll(STALL_S)
        if not ready:
            break  # whoever counts will miss what did not come
        for descriptor, _ in ready:
            if descriptor not in by_descriptor:
                told = True
                continue
            receive, tally, add_moment, add_count = by_descriptor[descriptor]
            tally.add(receive(READ_BYTES))
            add_moment(clock())
            add_count(tally.events)
            if expected is not None and tally.events >= expected and tally.last.endswith(b"\n"):
                poll.unregister(descriptor)
                left -= 1
    poll.close()
    for tally, arrived in zip(tallies, arrivals, strict=True):
        arrived.last = tally.last[-1000:]
