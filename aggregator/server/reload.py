"""SIGHUP: the server reads its files again without a restart. If a file is broken, nothing is replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from aggregator import regular_file
from aggregator.server.stats import Stats

log = logging.getLogger("aggregator")

LEVELS: Final = ("debug", "info", "warning", "error")


class CannotLoad(Exception):
    """A file cannot be used; the text says why in one line, for an administrator."""


def read(path: Path, option: str) -> bytes:
    """The content of the file that an option names. Raises CannotLoad."""
    try:
        return regular_file.read(path)
    except OSError as error:
        raise CannotLoad(f"cannot read {path} ({option}): {error.strerror}") from error


class Reloadable(Protocol):
    """Something that is read from files."""

    def load(self) -> Callable[[], None]:
        """Read and check everything; return a function that replaces the old by the new. Raises CannotLoad.

        It is called in a thread, because a disk may be slow; the function it returns is called in the event loop.
        """


class LogLevel:
    """The log level, read from a file so that it can be changed while the server runs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Callable[[], None]:
        """Raises CannotLoad."""
        try:
            word = read(self._path, "--log-level-file").decode().strip().lower()
        except UnicodeDecodeError as error:
            raise CannotLoad(f"cannot read {self._path} (--log-level-file): {error.reason}") from error
        if word not in LEVELS:
            raise CannotLoad(f"{self._path} (--log-level-file): expected {_OR}, got {word[:20]!r}")
        return lambda: log.setLevel(word.upper())


_OR: Final = ", ".join(LEVELS[:-1]) + " or " + LEVELS[-1]


class LoadedInPart(Exception):
    """Only some of what was read is in force, because of a defect of ours."""


async def load(reloadables: Sequence[Reloadable]) -> None:
    """Read everything, and put it in force. Raises CannotLoad, which leaves everything as before, or LoadedInPart."""
    swaps = [await asyncio.to_thread(one.load) for one in reloadables]
    failures = []
    for swap in swaps:
        try:
            swap()
        except Exception as error:
            failures.append(error)
    if failures:
        raise LoadedInPart from failures[0]


async def keep_loading(reloadables: Sequence[Reloadable], asked: asyncio.Event, stats: Stats) -> None:
    """Load whenever ``asked`` is set. A broken file changes nothing; the failure is logged, and shown in ``stats``."""
    while True:
        await asked.wait()
        asked.clear()
        try:
            await load(reloadables)
        except CannotLoad as error:
            stats.config_reload_ok = False
            log.error("not reloaded, everything stays as it was: %s", error)
        except LoadedInPart:
            stats.config_reload_ok = False
            log.exception("only partly reloaded")
        except Exception:  # a defect of ours; the next try may do better
            stats.config_reload_ok = False
            log.exception("not reloaded, everything stays as it was")
        else:
            stats.config_reload_ok = True
            log.info("reloaded")
