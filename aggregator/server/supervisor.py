"""What the service manager is told: sd_notify(3), with ``NOTIFY_SOCKET``, and the watchdog of systemd.service(5).

Without a service manager nothing is sent. The event loop feeds the watchdog, and only while the store is well. So the
manager restarts a server whose store has failed, or whose commit does not end. A full disk, or another program that
keeps the store busy, is no reason to stop feeding, because a restart mends neither.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from typing import Final

from aggregator.server.health import Health

log = logging.getLogger("aggregator")

BEAT_S: Final = 1.0
"""How often the status is checked."""

_BEATS_PER_WATCHDOG: Final = 3
"""The watchdog is fed this many times in its timeout: sd_watchdog_enabled(3) recommends two, and a beat may be late."""


class Supervisor:
    """The service manager of this process, if it has one that wants to be told."""

    def __init__(self, health: Health, environment: Mapping[str, str]) -> None:
        self._health = health
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog_s = _watchdog_s(environment) if self._address else None
        self._status = ""
        self._stopping = False

    def ready(self) -> None:
        """Report that the server is ready. From now on, report changes of its status, and feed the watchdog."""
        self._tell("READY=1", f"STATUS={self._current_status()}")
        self._beat()

    def stopping(self) -> None:
        """Report that the server is about to end."""
        self._stopping = True
        self._tell("STOPPING=1", f"STATUS={self._current_status()}")

    def _beat(self) -> None:
        if not self._address:
            return
        lines = []
        if self._current_status() != self._status:
            lines.append(f"STATUS={self._current_status()}")
        stuck = self._health.slow_commit and not self._health.trouble  # a busy or full store sets ``trouble``
        if self._watchdog_s and not self._health.failure and not stuck:
            lines.append("WATCHDOG=1")
        self._tell(*lines)
        delay_s = min(BEAT_S, self._watchdog_s / _BEATS_PER_WATCHDOG) if self._watchdog_s else BEAT_S
        asyncio.get_running_loop().call_later(delay_s, self._beat)

    def _current_status(self) -> str:
        health = self._health
        wrong = "failed: " + health.failure if health.failure else health.trouble or health.slow_commit
        doing = "stopping: storing what was read" if self._stopping else "storing events"
        return f"not storing: {wrong}" if wrong else doing

    def _tell(self, *lines: str) -> None:
        if not self._address or not lines:
            return
        self._status = self._current_status()
        text = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
                one.setblocking(False)  # a manager that is stopped must not hold up the event loop
                one.sendto(text.encode(), self._address)
        except OSError as error:
            log.debug("cannot tell the service manager %r: %s", text, error)


def _address(text: str) -> str:
    """A socket's address from the variable: a path, or a name in the abstract namespace after ``@``."""
    if text.startswith("@"):
        return "\0" + text[1:]
    if text and not text.startswith("/"):
        log.warning("NOTIFY_SOCKET=%s is ignored: expected a path, or a name after @", text)
        return ""
    return text


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """The time after which the manager takes this process for dead; None if the manager does not watch it."""
    microseconds, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 1e6
