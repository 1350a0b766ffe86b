"""A system that is read from: a running server, and what its protocol has for one event and for one reader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from bench.channel import Channel
from bench.process import cpu_s


@dataclass(frozen=True, slots=True)
class Caught:
    """One catch-up."""

    seconds: float
    """The time from the request to the last event."""
    events: int
    exact: bool
    """Whether there were as many events as expected, and the last one was the newest."""


class System(ABC):
    """A running server."""

    mark: ClassVar[bytes]
    """What each delivered event has exactly once."""
    greeting: ClassVar[bytes]
    """What makes a connection a reader of everything that is sent from then on."""
    ready: ClassVar[bytes]
    """What the answer to the greeting contains."""

    def __init__(self, pid: int, port: int) -> None:
        self.port = port
        self._pid = pid

    @property
    def cpu_s(self) -> float:
        """The server's processor time so far."""
        return cpu_s(self._pid)

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """The versions of everything that the figures depend on."""

    @abstractmethod
    def fill(self, lines: list[bytes]) -> None:
        """Let the system store all these events."""

    @abstractmethod
    def catch_up(self, expected: int) -> Caught:
        """Read all stored events, which are ``expected`` in number."""

    @abstractmethod
    def channel(self, lines: list[bytes]) -> Channel:
        """A connection that sends these events."""


class Systems:
    """The systems that take turns: ours, and the peers that run. Ours comes first and must not fail."""

    def __init__(self, ours: System, on_failure: Callable[[str, BaseException], None]) -> None:
        self._running = {OURS: ours}
        self._on_failure = on_failure

    def add(self, name: str, peer: System) -> None:
        """Add a peer that takes turns."""
        self._running[name] = peer

    def each(self, measure: Callable[[System], dict[str, Any]], backwards: bool) -> dict[str, dict[str, Any]]:
        """The figures of each system by its name. A peer that fails is left out from then on."""
        figures = {}
        for name, system in list(self._running.items())[:: -1 if backwards else 1]:
            try:
                figures[name] = measure(system)
            except Exception as error:  # whatever a peer does, ours is measured
                if name == OURS:
                    raise
                del self._running[name]
                self._on_failure(name, error)
        return {name: figures[name] for name in self._running}


OURS: Final = "ours"

Start = Callable[[Path], AbstractContextManager[System]]
"""Starts a system in an empty folder."""


def topic(line: bytes) -> bytes:
    """The topic of an event, as ``workload`` writes events."""
    start = len(b'{"topic":"')
    return line[start : line.index(b'"', start)]
