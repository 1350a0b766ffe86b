"""Rejected lines: a few at a time are shown as they happen, and all of them are kept in the file of ``--rejects``."""

from __future__ import annotations

import base64
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from aggregator.client.reply import reason

SHOWN: Final = 5
"""Most rejections that are shown within PERIOD_S. Later ones are counted, and their number is shown at its end."""

PERIOD_S: Final = 10.0


class CannotKeep(Exception):
    """A rejection could not be written to the file: going on would lose it. The text says why."""


class Rejects:
    """Shows and keeps rejections."""

    def __init__(self, say: Callable[[str], None], path: Path | None) -> None:
        """Raises CannotKeep."""
        self.count = 0
        self._say = say
        self._left_out = 0
        self._shown = 0
        self._period_ends_at = 0.0
        self._path = path
        self._unsynced = False
        self._fd: int | None = None
        if path is not None:
            with self._failing():
                self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def add(self, name: str, number: int, code: str, detail: str, content: bytes | None) -> None:
        """Add the rejection of a line, or of one event in it. Raises CannotKeep."""
        self.count += 1
        self._keep({"file": name, "line": number, "code": code, "detail": detail, **_lossless(content)})
        self.tick()
        if self._shown >= SHOWN:
            self._left_out += 1
            return
        if not self._shown:
            self._period_ends_at = time.monotonic() + PERIOD_S
        self._shown += 1
        self._say(f"{name}:{number}: {code}: {detail}")

    def tick(self) -> None:
        """Show how many more rejections there were, if it is time to; to be called now and then."""
        if self._shown and time.monotonic() >= self._period_ends_at:
            self._say_left_out()
            self._shown = 0

    def sync(self) -> None:
        """Make sure that what was kept is on disk. Raises CannotKeep."""
        if self._fd is not None and self._unsynced:
            with self._failing():
                os.fsync(self._fd)
            self._unsynced = False

    def close(self) -> None:
        self._say_left_out()
        if self._fd is not None:
            os.close(self._fd)

    def _say_left_out(self) -> None:
        if self._left_out:
            self._say(f"and {self._left_out} more")
        self._left_out = 0

    def _keep(self, rejection: dict[str, Any]) -> None:
        if self._fd is None:
            return
        line = orjson.dumps(rejection, option=orjson.OPT_APPEND_NEWLINE)
        self._unsynced = True
        with self._failing():
            while line:
                line = line[os.write(self._fd, line) :]

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CannotKeep(f"{self._path}: {reason(error)}") from error


def _lossless(content: bytes | None) -> dict[str, str]:
    """The line as text, or in base64 if it is not UTF-8; nothing if it was too long to be loaded."""
    if content is None:
        return {}
    try:
        return {"content": content.decode()}
    except UnicodeDecodeError:
        return {"content_base64": base64.b64encode(content).decode()}
