"""Python's logging to a server, from a thread of its own: a record is stored, or its loss is reported.

Rules that hold here:

- The program is never held up for longer than it allows. The number of records without an ack is bounded; past the
  bound a new record is dropped and counted.
- Dropped records are reported on standard error when there is room again, and at the end. When there is room again, an
  event reports them too, so that the readers of the log see the hole. The first rejected record is reported on standard
  error; all of them are counted.
- A child made by fork has none of its parent's records and no thread; it starts its own thread with its first record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import threading
import time
import weakref
from typing import Any, Final

import orjson

from aggregator.client.connect import Server
from aggregator.client.encode import host_name
from aggregator.client.log_queue import LogQueue
from aggregator.client.log_record import event_of
from aggregator.client.sender import Sender
from aggregator.wire import Status

QUEUE_RECORDS: Final = 10_000
QUEUE_BYTES: Final = 16 << 20
"""Most records without an ack: some seconds of a busy program, or what is logged while a server restarts."""

CLOSE_S: Final = 5.0
"""How long the end of the program waits for the last acks."""

RETRY_S: Final = 5.0
"""The pause before a server that is not an aggregator is tried again."""

_JOIN_S: Final = 1.0
_STDERR: Final = 2


class LogHandler(logging.Handler):
    """Sends each record as an event of one topic: ``logging.getLogger().addHandler(LogHandler(port=8080))``.

    ``block_s`` is how long a program waits for room when too many records have no ack; with 0, new records are dropped
    at once. ``close_s`` is how long ``flush`` and the end of the program wait for the last acks. ``host``, ``ssl`` and
    ``token`` are as in ``Sender``. A formatter is not used, because the event has each part of the record in a field of
    its own.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8080,
        topic: str = "log",
        *,
        ssl: ssl.SSLContext | None = None,
        token: str | None = None,
        source: str | None = None,
        level: int | str = logging.NOTSET,
        block_s: float = 0.0,
        close_s: float = CLOSE_S,
        queue_records: int = QUEUE_RECORDS,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        super().__init__(level)
        self.dropped = 0
        """How many records were not sent, because there was no room for them."""
        self.rejected = 0
        """How many records the server has rejected."""
        self._server, self._topic = Server(host, port, ssl, token), topic
        self._source = host_name() if source is None else source
        self._block_s, self._close_s = block_s, close_s
        self._bounds = queue_records, queue_bytes
        self._begin()
        _handlers.add(self)

    def createLock(self) -> None:
        """No lock around ``emit``: a thread that waits for room must not hold up a thread that finds room."""
        self.lock = None

    def _begin(self) -> None:
        self._queue = LogQueue(*self._bounds, self._on_line)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake, self._ending = asyncio.Event(), asyncio.Event()  # set only through the loop of the thread

    @property
    def unanswered(self) -> int:
        """How many records have no ack."""
        return len(self._queue)

    # --- in the threads of the program

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record. It is formatted now, because the objects in it may change."""
        if threading.current_thread() is self._thread:
            return  # to send records about the sending would go on for ever
        try:
            if not self._queue.put(event_of(record, self._topic, self._source), self._block_s):
                self.dropped += 1
        except Exception:
            self.handleError(record)

    def _on_line(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="aggregator log", daemon=True)
            self._thread.start()
        self._signal(self._wake)

    def _signal(self, event: asyncio.Event) -> None:
        if self._loop:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(event.set)

    def flush(self) -> None:
        """Wait until every record has its ack, for no longer than ``close_s``."""
        self._queue.wait(self._close_s)

    def close(self) -> None:
        """Send what is left, for no longer than ``close_s``, and end."""
        if not self._queue.closed:
            self.flush()
            self._queue.close()
            self._signal(self._ending)
            if self._thread:
                self._thread.join(_JOIN_S)
            if left := len(self._queue):
                self._say(f"{left} log records have no ack")
            self._say_dropped(self._queue.untold())
        super().close()

    # --- in the thread of the handler

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        sending = asyncio.create_task(self._keep_sending())
        if not self._queue.closed:
            await self._ending.wait()
        sending.cancel()
        await asyncio.wait([sending])

    async def _keep_sending(self) -> None:
        while True:
            server = self._server
            sender = Sender(
                server.host, server.port, self._take_reply, ssl=server.ssl, token=server.token, on_trouble=self._say
            )
            sender.stopped.add_done_callback(lambda _: self._wake.set())
            try:
                await self._send(sender)
            except Exception as error:  # the server is not an aggregator; it may be one later
                self._say(f"{self._server.shown}: {error}; trying again")
            finally:
                await sender.close()
            self._queue.take_back()
            await asyncio.sleep(RETRY_S)

    async def _send(self, sender: Sender) -> None:
        """Send records as they come. Raises the error that stops the sender."""
        while not sender.stopped.done():
            self._wake.clear()
            while one := self._queue.take():
                number, line = one
                await sender.send(line, number)
            await self._wake.wait()
        sender.stopped.result()

    def _take_reply(self, number: int, status: str, reply: bytes) -> None:
        self._queue.answered(number)
        if status == Status.REJECTED:
            self.rejected += 1
            if self.rejected == 1:
                self._say(f"a log record was rejected: {orjson.loads(reply).get('detail')}; others are only counted")
        self._say_dropped(self._queue.untold(self._hole))

    def _hole(self, count: int) -> bytes:
        """An event that stands for the dropped records."""
        text = f"{count} log records were dropped before this one"
        record = logging.makeLogRecord({"name": __name__, "levelname": "WARNING", "msg": text, "created": time.time()})
        return event_of(record, self._topic, self._source)

    def _say_dropped(self, count: int) -> None:
        if count:
            self._say(f"{self._server.shown}: {count} log records were dropped, because too many had no ack")

    def _say(self, text: str) -> None:
        """Write one line to standard error, as logging itself does when it cannot log."""
        if logging.raiseExceptions:
            with contextlib.suppress(OSError):  # there is nowhere else
                os.write(_STDERR, f"aggregator: {text}\n".encode(errors="backslashreplace"))


class _Loop(asyncio.SelectorEventLoop):
    """A loop that is alone in its thread, so it may wait for a name server.

    The threads that asyncio uses for that otherwise end before the program does.
    """

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        return socket.getaddrinfo(host, port, **options)


_handlers: Final[weakref.WeakSet[LogHandler]] = weakref.WeakSet()

_of_parents: Final[list[object]] = []
"""Event loops of threads that exist only in a parent process. They are kept, because their destruction would touch the
parent's connections."""


def _begin_in_child() -> None:
    for handler in list(_handlers):
        _of_parents.append((handler._loop, handler._thread, handler._queue))
        handler._begin()


os.register_at_fork(after_in_child=_begin_in_child)
