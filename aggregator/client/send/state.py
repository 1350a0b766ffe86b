"""The file of ``--state``: replaced as a whole, so that after a crash it is the old or the new file, never a part.

If a crash of the machine brings back an old file, lines are sent again, and stored once.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any, Final

from aggregator.client.replace import replace

VERSION: Final = 1


class BadState(Exception):
    """The file cannot be used; the text tells the user why."""


class StateFile:
    """One file that only this process may write, as long as it runs."""

    def __init__(self, path: Path) -> None:
        """Raises BadState and OSError."""
        self._path = path = path.resolve()  # a symbolic link stays a link
        if path.exists() and not path.is_file():  # a device would be replaced by a file
            raise BadState("not a regular file")
        self._one_at_a_time = threading.Lock()
        self._number = 0
        # The lock is on a file of its own, because the state file is replaced again and again. The lock file is never
        # removed: otherwise a process that waits for the lock would lock a file that is gone.
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise BadState("another process uses it") from None

    def load(self) -> dict[str, Any]:
        """What was saved last; empty if nothing was. Raises BadState and OSError."""
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        if not text:
            return {}
        try:
            fields = json.loads(text)
        except ValueError:
            fields = None
        if type(fields) is not dict or fields.get("version") != VERSION:
            raise BadState("not written by send --state")
        return fields

    def save(self, number: int, fields: dict[str, Any]) -> None:
        """Replace the file, unless one with a higher number has already been saved. Raises OSError."""
        text = json.dumps({"version": VERSION, **fields}, indent=1).encode()
        with self._one_at_a_time:
            if number >= self._number:
                replace(self._path, text)
                self._number = number

    def close(self) -> None:
        os.close(self._lock)
