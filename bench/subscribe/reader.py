"""A process that reads over many connections, and reports what arrived when and what reading cost.

It is a process of its own because the sender must neither wait for it nor share an interpreter with it.
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
"""How many connections are opened at a time. If too many wait to be accepted, the kernel drops some of their packets,
and the connections take seconds."""

SPARE_DESCRIPTORS: Final = 64
HEAD_BYTES: Final = 64 * 1024
"""The answer to the greeting is shorter than this."""

_RESET: Final = struct.pack("ii", 1, 0)
"""Makes the end of the process reset its connections. Our server would go on delivering after a close of one half."""

_REFUSALS: Final = (b'{"status":"error"', b'{"status":"rejected"', b"-ERR")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the process is to do."""

    port: int
    readers: int
    greeting: bytes
    """What each connection sends first."""
    ready: bytes
    """What the answer to the greeting contains."""
    mark: bytes
    """What each event has exactly once."""
    expected: int | None = None
    """How many events each reader reads; None: it reads until it is told to stop."""
    stalled: bool = False
    """Whether no reader reads any more once all are ready."""


@dataclass(slots=True)
class Arrivals:
    """What arrived over one connection: after each read, the moment (``time.perf_counter``) and the events so far."""

    moments: array[float] = field(default_factory=lambda: array("d"))
    counts: array[int] = field(default_factory=lambda: array("L"))
    last: bytes = b""
    """The bytes that arrived last."""

    @property
    def events(self) -> int:
        return self.counts[-1] if self.counts else 0


@dataclass(frozen=True, slots=True)
class Report:
    """The results of the process."""

    readers: list[Arrivals]
    cpu_s: float
    """The processor time of the process since all readers were ready."""

    @property
    def events(self) -> int:
        """The number of all deliveries."""
        return sum(one.events for one in self.readers)

    @property
    def seconds(self) -> float:
        """The time from the first read to the last."""
        moments = [(one.moments[0], one.moments[-1]) for one in self.readers if one.moments]
        return max(last for _, last in moments) - min(first for first, _ in moments) if moments else 0.0


class Readers:
    """The process, seen from outside. Entering the context waits until all readers are ready."""

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
        """Tell the readers to stop reading."""
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
        pipe.poll(None)  # connections stay open until the figures have been taken
    except EOFError:
        return  # the other end has been closed
    except (OSError, RuntimeError) as error:
        pipe.send(f"a reader failed: {error}")


def _connect(plan: Plan) -> tuple[list[socket.socket], list[Tally]]:
    """Connect every reader; return when all are ready."""
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
            break  # the counts will show what did not arrive
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
