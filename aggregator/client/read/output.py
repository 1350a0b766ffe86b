"""Standard output or a file, to which a thread writes events, because a reader that does not read holds it up.

The event loop goes on: it hears the server, and the user's Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from aggregator.client.replace import sync_folder

_STDOUT: Final = 1


class Output:
    """Takes bytes; ``write`` returns when the system has them. A file gets its name only when it is complete."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises OSError."""
        self.name = "standard output" if path is None else str(path)
        self._made: Path | None = None
        self._path = path
        if path is None:
            self._fd = _STDOUT
        elif path.exists() and not stat.S_ISREG(path.stat().st_mode):
            self._fd = os.open(path, os.O_WRONLY)  # a pipe or a device
        else:
            self._made = path.with_name(path.name + ".part")
            self._fd = os.open(self._made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self.is_terminal = os.isatty(self._fd)
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[tuple[bytes, asyncio.Future[None]]] = SimpleQueue()
        # A daemon thread, because the program may end while nobody reads what it writes.
        threading.Thread(target=self._write_all, name="output", daemon=True).start()

    async def write(self, data: bytes) -> None:
        """Raises OSError. BrokenPipeError means that nobody reads any more."""
        if data:
            written: asyncio.Future[None] = self._loop.create_future()
            self._queue.put((data, written))
            await written

    async def complete(self) -> None:
        """Give the file its name, when everything is written. Raises OSError."""
        if self._made and self._path:
            await asyncio.to_thread(os.fsync, self._fd)
            os.replace(self._made, self._path)
            self._made = None
            await asyncio.to_thread(sync_folder, self._path.parent)

    def close(self) -> None:
        """Remove a file that is not complete."""
        if self._made:
            self._made.unlink(missing_ok=True)

    def when_closed(self, call: Callable[[], object]) -> None:
        """Call back when nobody reads the pipe any more, if the output is a pipe."""
        if stat.S_ISFIFO(os.fstat(self._fd).st_mode):
            # The end of a pipe that is written to becomes readable only when the other end is closed.
            self._loop.add_reader(self._fd, self._closed, call)

    def _closed(self, call: Callable[[], object]) -> None:
        self._loop.remove_reader(self._fd)
        call()

    def _write_all(self) -> None:
        while True:
            data, written = self._queue.get()
            failure: OSError | None = None
            try:
                self._write(data)
            except OSError as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: the program ends
                self._loop.call_soon_threadsafe(_settle, written, failure)

    def _write(self, data: bytes) -> None:
        while data:
            with contextlib.suppress(BlockingIOError):  # another program may have made it non-blocking
                data = data[os.write(self._fd, data) :]
                continue
            select.select([], [self._fd], [])


def _settle(written: asyncio.Future[None], failure: OSError | None) -> None:
    if written.done():
        return
    if failure:
        written.set_exception(failure)
    else:
        written.set_result(None)
