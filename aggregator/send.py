"""Files and standard input to events: lines with their origins into a Sender; progress; one summary.

Rules that hold here:

- Without a topic, lines are events already and go out byte for byte. A line that is none is rejected here, never
  sent: the server would take a letter for a command.
- With a topic, each line of text becomes an event. Its id is made from where the line stands and what it says, so
  that sending a file again stores nothing twice, also after the file has grown.
- Memory is bounded: by a chunk, one line and the Sender's window, however large the files are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import stat
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final

import orjson

from aggregator import event
from aggregator.client import GaveUp, NotOurProtocol, Sender, reason
from aggregator.protocol import BOM

CHUNK_BYTES: Final = 256 << 10
"""Read at a time: enough that a system call costs nothing per line, little enough that signals are noticed."""

MAX_LINE_BYTES: Final = 64 << 20
"""A longer line is skipped instead of loaded: far above what any server is set to take."""

POLL_S: Final = 0.25
"""How often a followed file is looked at; what tail's users are used to, rounded down."""

SHOWN_REJECTIONS: Final = 5

_STDIN: Final = "-"

_Line = tuple[int, int, bytes | None]
"""A line's 1-based number, the offset of its first byte, and its content; None for a line too long to load."""

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
            event.parse(_TextEvents(options.topic, source, _STDIN).wrap(0, b""))
        except (event.InvalidEvent, orjson.JSONEncodeError) as error:
            print(f"aggregator: {error}", file=sys.stderr)
            return 2
    return await _Run(options, source).run()


class _Lines:
    """Cuts a file into lines that know where they stand, whatever the pieces it is read in."""

    def __init__(self) -> None:
        self._number = 0
        self._start = 0  # of the line that is being read
        self._size = 0  # of what has been read of it
        self._rest = bytearray()  # the same, unless it is too long

    def feed(self, data: bytes) -> list[_Line]:
        *ends, rest = data.split(b"\n")
        lines = [self._end_line(end) for end in ends]
        self._keep(rest)
        return lines

    def finish(self) -> list[_Line]:
        """At the end of a file an unterminated rest is a line too."""
        return [self._end_line(b"")] if self._size else []

    def _end_line(self, end: bytes) -> _Line:
        content: bytes | None = end
        size = len(end)
        if self._size:
            self._keep(end)
            size = self._size
            content = bytes(self._rest) if size <= MAX_LINE_BYTES else None
            self._rest.clear()
            self._size = 0
        if content is not None:
            content = content.removesuffix(b"\r")
            if self._start == 0:
                content = content.removeprefix(BOM)
        start = self._start
        self._start += size + 1
        self._number += 1
        return self._number, start, content

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= MAX_LINE_BYTES:
            self._rest += part
        else:
            self._rest.clear()


class _TextEvents:
    """Makes events of one file's lines of text."""

    def __init__(self, topic: str, source: str, name: str) -> None:
        self._topic = topic
        self._source = source
        # Standard input has no place of its own: the same words piped in tomorrow are another event.
        path = uuid.uuid4().hex if name == _STDIN else os.path.abspath(name)
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
        if status == "rejected":
            rejection = orjson.loads(reply)
            self.reject(origin, rejection["code"], rejection["detail"])
        elif status == "batch":
            for number, result in enumerate(orjson.loads(reply)["results"], 1):
                if result["status"] == "rejected":
                    self.reject(origin, result["code"], f"event {number}: {result['detail']}")
                else:
                    self.counts[result["status"]] += 1
        else:
            self.counts[status] += 1

    def reject(self, origin: _Origin, code: str, detail: str) -> None:
        self.counts["rejected"] += 1
        if len(self.rejections) < SHOWN_REJECTIONS:
            self.rejections.append(f"{origin[0]}:{origin[1]}: {code}: {detail}")

    @property
    def taken(self) -> int:
        return self.counts["stored"] + self.counts["duplicate"]


class _Screen:
    """Standard error: complaints, and on a terminal a progress bar."""

    def __init__(self, options: SendOptions, names: list[str]) -> None:
        self._started_at = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty() and not options.quiet:
            with contextlib.suppress(ImportError):  # the extra "cli"
                from tqdm import tqdm

                total = None if options.follow else _total_bytes(names)
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


class _File:
    """An open file, pipe or terminal, whose lines go to a Sender."""

    def __init__(self, name: str, fd: int, sender: Sender, tally: _Tally, screen: _Screen, text: _TextEvents | None):
        self._name = name
        self._fd = fd
        self._sender = sender
        self._tally = tally
        self._screen = screen
        self._text = text
        self._lines = _Lines()

    async def send_all(self) -> None:
        """Read and send to the end; an unterminated rest is a line too."""
        await self._send_what_is_there()
        await self._send(self._lines.finish())

    async def follow(self) -> None:
        """The same, but the end is where another file has taken the name, or where this one was truncated."""
        over = False
        while not over:
            over = self._is_over()  # asked first, so that all that was written before is read
            await self._send_what_is_there()
            await asyncio.sleep(0 if over else POLL_S)
        await self._send(self._lines.finish())

    def _is_over(self) -> bool:
        this = os.fstat(self._fd)
        if this.st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
            return True
        try:
            named = os.stat(self._name)
        except OSError:  # renamed, and no new one yet
            return False
        # While the new file is empty its writer may still be writing to the old one.
        return named.st_size > 0 and not os.path.samestat(this, named)

    async def _send_what_is_there(self) -> None:
        while data := await _read(self._fd):
            await self._send(self._lines.feed(data))
            self._screen.show(len(data), self._tally.taken)

    async def _send(self, lines: list[_Line]) -> None:
        for number, start, content in lines:
            origin = (self._name, number)
            if content is None:
                self._tally.reject(origin, "too_long", f"longer than {MAX_LINE_BYTES} bytes; not sent")
            elif not content:
                continue
            elif self._text:
                await self._sender.send(self._text.wrap(start, content), origin)
            elif content[0] in b"{[":
                await self._sender.send(content, origin)
            else:
                self._tally.reject(origin, "bad_line", f"expected {{ or [, got {content[:1]!r}; not sent")


class _Run:
    """One run of `aggregator send`."""

    def __init__(self, options: SendOptions, source: str) -> None:
        self._options = options
        self._source = source
        self._names = options.files or [_STDIN]
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
        failed = self._unreadable or stopped.done() or self._sender.unanswered or self._tally.counts["rejected"]
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
                await asyncio.gather(*map(self._follow, self._names))
            else:
                for name in self._names:
                    await self._send_file(name)
        except asyncio.CancelledError:
            if not self._options.follow:
                raise
        await self._sender.flush()

    async def _send_file(self, name: str) -> None:
        try:
            with _opened(name) as fd:
                await self._file(name, fd).send_all()
        except OSError as error:
            self._unreadable = True
            self._screen.complain(f"{name}: {reason(error)}")

    async def _follow(self, name: str) -> None:
        """Send a file as it grows, then the one that has its name next, and so on; a pipe only to its end."""
        if not _may_grow(name):
            await self._send_file(name)
            return
        waiting = False
        while True:
            try:
                with _opened(name) as fd:
                    waiting = False
                    await self._file(name, fd).follow()
            except OSError as error:
                if not waiting:
                    self._screen.complain(f"{name}: {reason(error)}; waiting for it")
                waiting = True
                await asyncio.sleep(POLL_S)

    def _file(self, name: str, fd: int) -> _File:
        topic = self._options.topic
        text = None if topic is None else _TextEvents(topic, self._source, name)
        return _File(name, fd, self._sender, self._tally, self._screen, text)

    def _print_summary(self) -> None:
        rejections, counts = self._tally.rejections, self._tally.counts
        for rejection in rejections:
            print(rejection, file=sys.stderr)
        if counts["rejected"] > len(rejections):
            print(f"and {counts['rejected'] - len(rejections)} more", file=sys.stderr)
        if self._options.quiet:
            return
        total = self._tally.taken + counts["rejected"]
        elapsed_s = self._screen.elapsed_s
        unanswered = f", unanswered {self._sender.unanswered}" if self._sender.unanswered else ""
        print(
            f"sent {total}: stored {counts['stored']}, duplicate {counts['duplicate']}, "
            f"rejected {counts['rejected']}, errors {self._sender.errors}{unanswered} "
            f"in {elapsed_s:.1f} s ({total / elapsed_s:,.0f}/s)",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _opened(name: str) -> Iterator[int]:
    if name == _STDIN:
        if sys.stdin is None:  # its descriptor may be somebody else's by now
            raise OSError(errno.EBADF, "closed")
        yield sys.stdin.fileno()
        return
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe without a writer must not hold up the loop
    try:
        yield fd
    finally:
        os.close(fd)


async def _read(fd: int) -> bytes:
    """The next chunk; nothing at the end. Waits without a thread: one that reads a terminal can't be interrupted."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    while True:
        try:
            loop.add_reader(fd, ready.set)
        except PermissionError:  # a regular file: always ready, and not to be waited for
            await asyncio.sleep(0)
        else:
            try:
                await ready.wait()
            finally:
                loop.remove_reader(fd)
        with contextlib.suppress(BlockingIOError):
            return os.read(fd, CHUNK_BYTES)
        ready.clear()


def _may_grow(name: str) -> bool:
    """Whether there is a regular file, or none yet, as against a pipe or a terminal."""
    try:
        return name != _STDIN and stat.S_ISREG(os.stat(name).st_mode)
    except OSError:
        return True


def _total_bytes(names: list[str]) -> int | None:
    """How much there is to read, when all are regular files."""
    try:
        found = [os.stat(0 if name == _STDIN else name) for name in names]
    except OSError:
        return None
    return sum(one.st_size for one in found) if all(stat.S_ISREG(one.st_mode) for one in found) else None
