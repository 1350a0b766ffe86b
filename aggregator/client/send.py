"""Files and standard input to events: lines with their origins into a Sender; progress; one summary.

Rules that hold here:

- Without a topic, lines are events already and go out byte for byte. A line that is none is rejected here, never
  sent: the server would take a letter for a command.
- With a topic, each line of text becomes an event. Its id is made from where the line stands and what it says, so
  that sending a file again stores nothing twice, also after the file has grown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b
from typing import Any, Final

import orjson

from aggregator.client.follow import MAX_LINE_BYTES, STDIN, Line, Piece, follow, read, total_bytes
from aggregator.client.reply import NotOurProtocol, reason
from aggregator.client.sender import GaveUp, Sender
from aggregator.wire import Code, Rejection, Status, rules

SHOWN_REJECTIONS: Final = 5

_Origin = tuple[str, int]
"""The name of a file and the number of a line in it."""


@dataclass(frozen=True, slots=True)
class SendOptions:
    """What to send, where to, and how; `aggregator send --help` says the same."""

    files: list[str]
    host: str
    port: int
    topic: str | None = None
    source: str | None = None
    follow: bool = False
    quiet: bool = False
    give_up_after_s: float | None = None


async def send(options: SendOptions) -> int:
    """Send until every event has its final reply; return the exit code."""
    source = socket.gethostname() if options.source is None else options.source
    if options.topic is not None:
        try:
            found = rules.parse(_TextEvents(options.topic, source, STDIN).wrap(0, b""))
        except orjson.JSONEncodeError as error:
            print(f"aggregator: {error}", file=sys.stderr)
            return 2
        if isinstance(found, Rejection):
            print(f"aggregator: {found.detail}", file=sys.stderr)
            return 2
    return await _Run(options, source).run()


class _TextEvents:
    """Makes events of one file's lines of text."""

    def __init__(self, topic: str, source: str, name: str) -> None:
        self._topic = topic
        self._source = source
        # Standard input has no place of its own: the same words piped in tomorrow are another event.
        path = uuid.uuid4().hex if name == STDIN else os.path.abspath(name)
        self._key = blake2b(digest_size=16)
        for part in (source.encode(errors="surrogateescape"), os.fsencode(path)):
            self._key.update(b"%d:%s" % (len(part), part))  # with their lengths no two pairs look the same

    def wrap(self, start: int, content: bytes) -> bytes:
        key = self._key.copy()
        key.update(b"%d:%s" % (start, content))
        return orjson.dumps(
            {
                "topic": self._topic,
                "event_id": key.hexdigest(),
                "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "source": self._source,
                "payload": {"message": content.decode(errors="backslashreplace")},
            }
        )


class _Tally:
    """What became of the events."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.rejections: list[str] = []

    def take(self, origin: _Origin, status: str, reply: bytes) -> None:
        """Count a final reply, as the Sender passes it on."""
        if status == Status.REJECTED:
            rejection = orjson.loads(reply)
            self.reject(origin, rejection["code"], rejection["detail"])
        elif status == Status.BATCH:
            for number, result in enumerate(orjson.loads(reply)["results"], 1):
                if result["status"] == Status.REJECTED:
                    self.reject(origin, result["code"], f"event {number}: {result['detail']}")
                else:
                    self.counts[result["status"]] += 1
        else:
            self.counts[status] += 1

    def reject(self, origin: _Origin, code: str, detail: str) -> None:
        self.counts[Status.REJECTED] += 1
        if len(self.rejections) < SHOWN_REJECTIONS:
            self.rejections.append(f"{origin[0]}:{origin[1]}: {code}: {detail}")

    @property
    def taken(self) -> int:
        return self.counts[Status.STORED] + self.counts[Status.DUPLICATE]


class _Screen:
    """Standard error: complaints, and on a terminal a progress bar."""

    def __init__(self, options: SendOptions, names: list[str]) -> None:
        self._started_at = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty() and not options.quiet:
            with contextlib.suppress(ImportError):  # the extra "cli"
                from tqdm import tqdm

                total = None if options.follow else total_bytes(names)
                self._bar = tqdm(total=total, unit="B", unit_scale=True, leave=False, dynamic_ncols=True)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_at

    def complain(self, message: str) -> None:
        write = print if self._bar is None else self._bar.write
        write(f"aggregator: {message}", file=sys.stderr)

    def show(self, size: int, acked: int) -> None:
        if self._bar is not None:  # a bar without a total has no truth value
            self._bar.set_postfix_str(f"{acked / self.elapsed_s:,.0f} events/s", refresh=False)
            self._bar.update(size)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Run:
    """One run of `aggregator send`."""

    def __init__(self, options: SendOptions, source: str) -> None:
        self._options = options
        self._source = source
        self._names = options.files or [STDIN]
        self._screen = _Screen(options, self._names)
        self._tally = _Tally()
        self._sender = Sender(
            options.host,
            options.port,
            self._tally.take,
            on_trouble=self._screen.complain,
            give_up_after_s=options.give_up_after_s,
        )
        self._unreadable = False
        self._interrupted = False

    async def run(self) -> int:
        job = asyncio.create_task(self._send_all())
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, job)
        stopped = self._sender.stopped
        stopped.add_done_callback(lambda _: job.cancel())  # it may be waiting for input
        with contextlib.suppress(asyncio.CancelledError, GaveUp, NotOurProtocol):
            await job
        failed = self._unreadable or stopped.done() or self._sender.unanswered or self._tally.counts[Status.REJECTED]
        if stopped.done():
            self._screen.complain(f"{self._options.host}:{self._options.port}: {stopped.exception()}")
        self._screen.close()
        self._print_summary()
        await self._sender.close()
        if self._interrupted and not self._options.follow:
            return 130
        return 1 if failed else 0

    def _on_signal(self, job: asyncio.Task[None]) -> None:
        if self._interrupted:
            os._exit(130)
        self._interrupted = True
        job.cancel()

    async def _send_all(self) -> None:
        try:
            if self._options.follow:
                await asyncio.gather(
                    *(self._send_file(name, follow(name, partial(self._say_missing, name))) for name in self._names)
                )
            else:
                for name in self._names:
                    await self._send_file(name, read(name))
        except asyncio.CancelledError:
            if not self._options.follow:
                raise
        await self._sender.flush()

    async def _send_file(self, name: str, pieces: AsyncIterator[Piece]) -> None:
        try:
            await self._send_pieces(name, pieces)
        except OSError as error:
            self._unreadable = True
            self._screen.complain(f"{name}: {reason(error)}")

    def _say_missing(self, name: str, error: OSError) -> None:
        self._screen.complain(f"{name}: {reason(error)}; waiting for it")

    async def _send_pieces(self, name: str, pieces: AsyncIterator[Piece]) -> None:
        topic = self._options.topic
        text = None if topic is None else _TextEvents(topic, self._source, name)
        async for lines, size in pieces:
            for line in lines:
                await self._send_line(name, line, text)
            self._screen.show(size, self._tally.taken)

    async def _send_line(self, name: str, line: Line, text: _TextEvents | None) -> None:
        origin = (name, line.number)
        content = line.content
        if content is None:
            self._tally.reject(origin, Code.TOO_LONG, f"longer than {MAX_LINE_BYTES} bytes; not sent")
        elif not content:
            return
        elif text:
            await self._sender.send(text.wrap(line.start, content), origin)
        elif content[0] in b"{[":
            await self._sender.send(content, origin)
        else:
            self._tally.reject(origin, Code.BAD_LINE, f"expected {{ or [, got {content[:1]!r}; not sent")

    def _print_summary(self) -> None:
        rejections, counts = self._tally.rejections, self._tally.counts
        for rejection in rejections:
            print(rejection, file=sys.stderr)
        if counts[Status.REJECTED] > len(rejections):
            print(f"and {counts[Status.REJECTED] - len(rejections)} more", file=sys.stderr)
        if self._options.quiet:
            return
        total = self._tally.taken + counts[Status.REJECTED]
        elapsed_s = self._screen.elapsed_s
        unanswered = f", unanswered {self._sender.unanswered}" if self._sender.unanswered else ""
        print(
            f"sent {total}: stored {counts[Status.STORED]}, duplicate {counts[Status.DUPLICATE]}, "
            f"rejected {counts[Status.REJECTED]}, errors {self._sender.errors}{unanswered} "
            f"in {elapsed_s:.1f} s ({total / elapsed_s:,.0f}/s)",
            file=sys.stderr,
        )
