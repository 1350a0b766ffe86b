"""A window of events in flight, each sent again until it has its final reply.

Rules that hold here:

- There is one reply for each line, in order, so the window is one FIFO queue, and its head gets each reply. A reply
  that does not answer the head means that the count is lost: everything unanswered is sent again, on another
  connection.
- A line leaves the window only with a final reply. An ``error`` reply and a lost connection mean "unknown": the line
  is sent again, byte for byte, which is always safe.
- Nothing is awaited between writing and reading: a sender that waits for its writes before it reads replies can wait
  for ever, because the server may be waiting for its replies to be read.
- A whole window takes one write, and one pass over the replies: there is no task per line, and a future only for a
  caller that asks for one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple

from aggregator.client import reply as replies
from aggregator.client.backoff import Backoff
from aggregator.client.connect import Server, SocketAddress, open_connection
from aggregator.client.connection import Connection
from aggregator.client.encode import event_line
from aggregator.client.reply import LostCount, NotOurProtocol, Reply, Unknown, final_status, reason

log = logging.getLogger("aggregator.client.sender")

WINDOW_LINES: Final = 5_000
"""Most lines without a final reply. This is twice what a server with default limits takes from one connection at a
time, so that the next commit's lines are ready when the server wants them."""

WINDOW_BYTES: Final = 8 << 20
"""The same bound for large lines; a single line may be larger."""

SILENCE_S: Final = 10.0
"""Acks take milliseconds. If none comes for this long while lines wait, that is reported: it may be the silent port."""

DEAF_S: Final = 60.0
"""A connection that delivers nothing for this long, while lines wait, is given up. The peer may have vanished silently,
or may have stopped replying to a client that was suspended. This is longer than a mebibyte takes at 20 KiB/s. If the
server's name has other addresses, a connection that has delivered nothing at all is given up after SILENCE_S, because
another address may do better."""

MAX_LOST_COUNTS: Final = 5
"""The sender stops after this many connections in succession on which the first reply answered something else than what
was sent."""

NOTABLE_S: Final = 2.0
"""If no ack comes for this long, the progress display says so."""

_WATCH_S: Final = 0.25

OnReply = Callable[[Any, str, bytes], None]
"""Gets a line's tag, the status of its final reply (stored, duplicate, rejected or batch), and that reply as JSON."""


class GaveUp(Exception):
    """No line got a final reply for as long as the sender was told to wait."""


class _Promise(NamedTuple):
    """The tag of a line whose reply a caller may wait for."""

    reply: asyncio.Future[Reply]


class Sender:
    """Sends events and sees each through to its final reply, across reconnects and restarts of the server.

    Create it inside a running event loop. An event is a line of JSON, which is sent byte for byte, or a mapping: then
    ``encode.event_line`` fills in a timestamp, an event_id and a source.

    ``store`` waits for an event's reply, and ``submit`` returns a future of it. Replies to events given to ``send`` are
    passed to ``on_reply``, in the order in which they come. At the end of ``async with`` every event has its reply,
    unless the block has raised. ``on_trouble`` gets one line of text at the start of every outage. Without
    ``give_up_after_s`` the sender tries for ever.

    ``host`` may be the path of a unix socket. With ``ssl`` the connection uses TLS. With ``token`` the client
    authenticates; a token is sent over TLS, unix sockets and loopback only.
    """

    def __init__(
        self,
        host: str,
        port: int,
        on_reply: OnReply | None = None,
        *,
        ssl: ssl.SSLContext | None = None,
        token: str | None = None,
        on_trouble: Callable[[str], None] = log.warning,
        give_up_after_s: float | None = None,
        window_lines: int = WINDOW_LINES,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self.errors = 0
        """How many replies had status ``error``; each such line was sent again."""
        self._server = Server(host, port, ssl, token)
        self.address = self._server.shown
        self._on_reply = on_reply
        self._on_trouble = on_trouble
        self._give_up_after_s = give_up_after_s
        self._window_lines, self._window_bytes = window_lines, window_bytes
        self._loop = asyncio.get_running_loop()
        # The window, oldest first: answered "unknown", written to this connection, not written yet.
        self._unknown: deque[tuple[bytes, object]] = deque()
        self._written: deque[tuple[bytes, object]] = deque()
        self._unwritten: deque[tuple[bytes, object]] = deque()
        self._lines = self._bytes = 0
        self._connection: Connection | None = None
        self._lost_counts = 0  # since the last final reply
        self._replies = 0  # on this connection: the number of the line that was answered last
        self._has_alternatives = False  # whether the name has other addresses
        self._disappointing: SocketAddress | None = None  # tried last if the name has several addresses
        self._next_try_at = 0.0
        self._write_scheduled = False
        self._resend: asyncio.TimerHandle | None = None  # nothing is written while it runs
        self._backoff = Backoff()
        self._in_trouble = False
        self._final_at = 0.0  # when the last final reply came, or the first line after an idle time
        self._something_waits = asyncio.Event()
        self._progress = asyncio.Event()
        self.stopped: asyncio.Future[None] = self._loop.create_future()
        """Done when the sender has stopped for good; its exception is what send() and flush() raise from then on."""
        self._tasks = [asyncio.create_task(self._keep_connected()), asyncio.create_task(self._watch())]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    @property
    def unanswered(self) -> int:
        """How many lines are in the window: sent or not, stored or not."""
        return self._lines

    @property
    def waits_for(self) -> str:
        """What the lines without a final reply wait for, in words; empty while acks come."""
        if not self._lines:
            return ""
        now = self._loop.time()
        if not self._connection:
            pause_s = self._next_try_at - now
            return f"waiting for {self.address}, " + (
                f"next try in {math.ceil(pause_s)} s" if pause_s > 0 else "connecting"
            )
        silence_s = now - self._final_at
        return f"waiting for {self.address}, no ack for {silence_s:.0f} s" if silence_s >= NOTABLE_S else ""

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self.flush()
        finally:
            await self.close()

    async def store(self, event: bytes | Mapping[str, Any]) -> Reply:
        """Send an event or batch; return its final reply: ``stored``, ``duplicate``, ``rejected`` or ``batch``."""
        return await (await self.submit(event))

    async def submit(self, event: bytes | Mapping[str, Any]) -> asyncio.Future[Reply]:
        """Put an event or batch into the window, waiting while that is full; return a future of its final reply."""
        promise = _Promise(self._loop.create_future())
        await self.send(event, promise)
        return promise.reply

    async def send(self, event: bytes | Mapping[str, Any], tag: object = None) -> None:
        """Put an event or batch, a line without its LF, into the window, waiting while that is full."""
        line = event if isinstance(event, bytes) else event_line(event)
        if not line.startswith((b"{", b"[")) or b"\n" in line:
            raise ValueError("expected one line that starts with { or [")
        if self._full() or self.stopped.done():
            await self._until(lambda: not self._full())
        if not self._lines:
            self._final_at = self._loop.time()
            self._something_waits.set()
        self._unwritten.append((line, tag))
        self._lines += 1
        self._bytes += len(line)
        if not self._write_scheduled:  # once per turn of the loop, for all lines that have come by then
            self._write_scheduled = True
            self._loop.call_soon(self._write)

    async def flush(self) -> None:
        """Wait until every line has its final reply."""
        await self._until(lambda: not self._lines)

    async def close(self) -> None:
        """Disconnect. Lines that are still in the window may be stored or not; flush() first to know."""
        self._stop(RuntimeError("the sender is closed"))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # lets the transport close its socket

    def _full(self) -> bool:
        return self._lines >= self._window_lines or self._bytes >= self._window_bytes

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not self.stopped.done() and not condition():
            self._progress.clear()
            await self._progress.wait()
        if self.stopped.done():
            self.stopped.result()

    def _stop(self, error: Exception) -> None:
        if not self.stopped.done():
            self.stopped.set_exception(error)
            self.stopped.exception()  # retrieved, because send() and flush() raise it too
            for _, tag in (*self._unknown, *self._written, *self._unwritten):
                if isinstance(tag, _Promise) and not tag.reply.done():
                    tag.reply.set_exception(error)
                    tag.reply.exception()  # the same
        self._progress.set()
        for task in self._tasks:
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._stop(error)  # a defect: callers get it raised, instead of waiting for ever

    # --- connections

    async def _keep_connected(self) -> None:
        while True:
            await self._something_waits.wait()
            why = await self._connect_once()
            if self._lines:
                self._report(f"{why}; trying again")
            pause_s = self._backoff.next_s()
            self._next_try_at = self._loop.time() + pause_s
            await asyncio.sleep(pause_s)

    async def _connect_once(self) -> str:
        """Connect, and stay until the connection is over; return why it is."""
        self._next_try_at = self._loop.time()
        self._replies = 1 if self._server.token else 0  # the token takes a line too
        try:
            reached, _, connection = await open_connection(
                self._server, lambda: Connection(self._take, self._server.token), self._disappointing
            )
        except OSError as error:
            return f"cannot connect: {reason(error)}"
        self._connection = connection
        self._has_alternatives = reached.alternatives
        try:
            self._write()
            return await connection.over
        finally:
            connection.transport.abort()
            self._connection = None
            self._disappointing = None if connection.has_spoken else reached.address
            self._unwritten = self._unknown + self._written + self._unwritten
            self._unknown.clear()
            self._written.clear()

    async def _watch(self) -> None:
        """Notice that final replies are overdue."""
        while True:
            await asyncio.sleep(_WATCH_S)
            if not self._lines:
                continue
            connection, now = self._connection, self._loop.time()
            overdue_s = now - self._final_at
            if self._give_up_after_s is not None and overdue_s >= self._give_up_after_s:
                self._stop(GaveUp(f"no ack for {self._give_up_after_s:g} s; {self._lines} lines are unanswered"))
            elif connection and now - max(connection.heard_at, self._final_at) >= self._patience_s(connection):
                connection.end(f"nothing heard for {self._patience_s(connection):g} s")
            elif overdue_s >= SILENCE_S:
                self._report(f"no ack for {SILENCE_S:g} s; is this the acked port? Waiting")

    def _patience_s(self, connection: Connection) -> float:
        return SILENCE_S if self._has_alternatives and not connection.has_spoken else DEAF_S

    def _report(self, trouble: str) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            self._on_trouble(f"{self.address}: {trouble}")

    # --- lines out

    def _write(self) -> None:
        self._write_scheduled = False
        connection = self._connection
        if connection and not connection.over.done() and not self._resend and self._unwritten:
            connection.transport.write(b"\n".join([line for line, _ in self._unwritten]) + b"\n")
            self._written += self._unwritten
            self._unwritten.clear()

    def _write_again(self) -> None:
        self._resend = None
        self._unwritten = self._unknown + self._unwritten
        self._unknown.clear()
        self._write()

    # --- replies in

    def _take(self, replies: list[bytes | None]) -> None:
        lines_before = self._lines
        try:
            for reply in replies:
                self._take_one(reply)
        except Unknown:
            raise
        except Exception as error:  # NotOurProtocol, or whatever the caller's on_reply raises
            self._stop(error)
        finally:
            if self._lines < lines_before:
                self._made_progress()

    def _take_one(self, reply: bytes | None) -> None:
        self._replies += 1
        line = self._written[0][0] if self._written else None
        try:
            status = final_status(reply, line, self._replies)
        except LostCount as lost:
            self._lost_counts += 1
            if self._lost_counts >= MAX_LOST_COUNTS:
                raise NotOurProtocol(lost.detail) from None
            raise
        except Unknown as unknown:
            self.errors += 1
            if unknown.ends_connection or not self._written:
                raise
            self._unknown.append(self._written.popleft())
            self._report(f"{unknown}; trying again")
            if not self._resend:
                self._resend = self._loop.call_later(self._backoff.next_s(), self._write_again)
            return
        line, tag = self._written.popleft()
        self._lost_counts = 0
        self._lines -= 1
        self._bytes -= len(line)
        assert reply
        if isinstance(tag, _Promise):
            if not tag.reply.done():  # otherwise nobody waits for it any more
                tag.reply.set_result(replies.read(reply))
        elif self._on_reply:
            self._on_reply(tag, status, reply)

    def _made_progress(self) -> None:
        self._final_at = self._loop.time()
        self._progress.set()
        if not self._unknown:
            self._backoff.reset()
            self._in_trouble = False
        if not self._lines:
            self._something_waits.clear()
