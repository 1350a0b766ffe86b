"""One run of ``aggregator send``: it gives lines with their places to a Sender, and shows progress and one summary.

Rules that hold here:

- Without a topic, lines are events already and are sent byte for byte. A line that is not an event is rejected here and
  never sent, because the server would take a line that begins with a letter for a command.
- Otherwise each line becomes an event. Its id is made from the file's identity and the file's content up to the line,
  so sending a file again stores nothing twice, even after the file has grown or was renamed.
- Positions are saved only for lines that have their final replies, and only after the rejections of these lines.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import stat
import uuid
from functools import partial
from typing import Final

from aggregator.client.descriptors import allow_descriptors
from aggregator.client.reply import NotOurProtocol, reason
from aggregator.client.screen import Screen
from aggregator.client.send.compressed import Damaged
from aggregator.client.send.content import Refused
from aggregator.client.send.follow import Files, Places, Trouble
from aggregator.client.send.identity import file_id
from aggregator.client.send.inputs import STDIN, total_bytes
from aggregator.client.send.line_ids import LineIds
from aggregator.client.send.lines import MAX_LINE_BYTES
from aggregator.client.send.options import SendOptions
from aggregator.client.send.positions import Positions
from aggregator.client.send.progress import Progress
from aggregator.client.send.rejects import CannotKeep, Rejects
from aggregator.client.send.tally import Tally
from aggregator.client.send.track import Place
from aggregator.client.send.wrap import Wrap
from aggregator.client.sender import GaveUp, Sender
from aggregator.wire import Code, Rejection

TICK_S: Final = 0.25
"""How often progress is drawn."""

TICKS_PER_SAVE: Final = 4
"""How often positions are saved: once a second."""

_JSON_SPACE: Final = b" \t\r"


class Run:
    """One run, from its options to its exit code."""

    def __init__(self, options: SendOptions, source: str, wrap: Wrap | None, screen: Screen) -> None:
        """Without ``wrap`` the lines are events. Raises BadState, CannotKeep, OSError."""
        self._options = options
        self._source = source
        self._wrap = wrap
        self._names = list(dict.fromkeys(options.files or [STDIN]))
        total = total_bytes(self._names) if screen.is_terminal and not options.follow else None
        self._progress = Progress(screen, total, has_bar=not options.quiet)
        self._positions = Positions(
            lambda file: self._ids(file.to_bytes()), options.state,
            {
                "to": options.server.shown,
                "lines": "events" if wrap is None else "JSON" if options.json else "text",
                "topic": options.topic,
                "identity": "content" if options.by_content else "file",
            },
        )  # fmt: skip
        self._files = Files(self._positions, self._ids_of_stream, self._say_gone, as_text=options.as_text)
        self._rejects = Rejects(self._progress.say, options.rejects)
        self._tally = Tally(self._rejects)
        self._sender = Sender(
            options.server.host, options.server.port, self._tally.take,
            ssl=options.server.ssl, token=options.server.token, on_trouble=self._complain,
            give_up_after_s=options.give_up_after_s,
        )  # fmt: skip
        self._failed = False
        self._state_failure = ""
        self._interrupted = False
        self._aborted = False  # whether waiting for acks is useless

    async def run(self) -> int:
        """Send until every event has its final reply; return the exit code."""
        await self._positions.save()
        if self._positions.failure:  # better to end now than after an hour
            self._complain(f"{self._options.state}: {self._positions.failure}")
            self._progress.close()
            await self._sender.close()
            return 1
        allow_descriptors(len(self._names))
        job = asyncio.create_task(self._send_all())
        ticking = asyncio.create_task(self._tick())
        for task in (self._sender.stopped, ticking):  # the job may be waiting for input
            task.add_done_callback(lambda _: job.cancel())
        self._handle_signals(job)
        await asyncio.wait([job])
        if not ticking.done():
            ticking.cancel()
            await asyncio.wait([ticking])
        errors = [one.exception() for one in (job, ticking, self._sender.stopped) if _failed(one)]
        try:
            await self._save()
        except CannotKeep as error:
            errors.append(error)
        for unique in {str(error): error for error in errors}.values():
            self._end_with(unique)
        self._say_what_was_missed()
        self._rejects.close()
        self._progress.close()
        if not self._options.quiet:
            self._say_summary()
        await self._sender.close()
        self._positions.close()
        if self._interrupted and not self._options.follow:
            return 130
        return 1 if self._failed or self._sender.unanswered or self._tally.rejected else 0

    def _handle_signals(self, job: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, job)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup makes programs ignore it
            loop.add_signal_handler(signal.SIGHUP, self._on_hang_up, job)
        for number in (signal.SIGUSR1, signal.SIGUSR2):  # a log rotation may send these to all programs
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, job: asyncio.Task[None]) -> None:
        if self._interrupted:
            os._exit(130)
        self._on_hang_up(job)

    def _on_hang_up(self, job: asyncio.Task[None]) -> None:
        if not self._interrupted:  # a terminal that goes away may send the signal twice
            self._interrupted = True
            job.cancel()

    # --- lines

    async def _send_all(self) -> None:
        try:
            if self._options.follow:
                await asyncio.gather(
                    *(
                        self._send_file(name, self._files.follow(name, partial(self._say_waiting, name)))
                        for name in self._names
                    )
                )
            else:
                for name in self._names:
                    await self._send_file(name, self._files.read(name))
        except asyncio.CancelledError:
            if not self._options.follow or self._aborted:
                raise
        await self._sender.flush()

    async def _send_file(self, name: str, pieces: Places) -> None:
        try:
            async for places in pieces:
                for place in places:
                    place.piece.track.begin(place)
                    await self._send_line(place)
        except (OSError, Refused, Damaged) as error:
            self._failed = True
            self._complain(f"{name}: {_why(error)}")

    async def _send_line(self, place: Place) -> None:
        content = place.content
        if content is None:
            self._tally.reject(place, Rejection(Code.TOO_LONG, f"longer than {MAX_LINE_BYTES} bytes; not sent"))
        elif not content:
            self._tally.skip(place)
        elif self._wrap:
            event = self._wrap.wrap(content, place.event_id, place.piece.track.written_at)
            if isinstance(event, Rejection):
                self._tally.reject(place, event)
            else:
                await self._sender.send(event, place)
        elif content[0] in b"{[":
            await self._sender.send(content, place)
        elif bare := content.lstrip(_JSON_SPACE):
            if bare[0] in b"{[":
                await self._sender.send(bare, place)
            else:
                detail = f"expected {{ or [, got {bare[:1]!r}; not sent"
                self._tally.reject(place, Rejection(Code.BAD_LINE, detail))
        else:
            self._tally.skip(place)

    def _ids_of_stream(self, fd: int) -> LineIds | None:
        """The ids of the lines of standard input.

        If it is a file, at its start, they are those of the file. Otherwise standard input has no identity: the same
        text piped in tomorrow is another event.
        """
        is_file = stat.S_ISREG(os.fstat(fd).st_mode) and os.lseek(fd, 0, os.SEEK_CUR) == 0
        return self._ids(file_id(fd).to_bytes() if is_file else uuid.uuid4().bytes)

    def _ids(self, file: bytes) -> LineIds | None:
        if self._wrap is None:
            return None
        source = self._source.encode(errors="surrogateescape")
        by_content = self._options.by_content
        # Because of the length, no two pairs of source and file give the same seed.
        return LineIds(b"%d:%s%s" % (len(source), source, b"" if by_content else file), has_generations=not by_content)

    # --- what is done periodically

    async def _tick(self) -> None:
        for tick in itertools.count(1):
            await asyncio.sleep(TICK_S)
            self._rejects.tick()
            acked_bytes = self._positions.resumed_bytes + self._tally.bytes
            self._progress.show(acked_bytes, self._tally.taken, self._sender.waits_for)
            if tick % TICKS_PER_SAVE == 0:
                await self._save()

    async def _save(self) -> None:
        try:
            self._rejects.sync()  # a line whose rejection is not kept must be read again
        except CannotKeep:
            self._aborted = True
            raise
        await self._positions.save()
        failure = self._positions.failure
        if failure and failure != self._state_failure:
            self._complain(f"{self._options.state}: {failure}; trying again")
        self._state_failure = failure

    # --- messages

    def _complain(self, message: str) -> None:
        self._progress.say(f"aggregator: {message}")

    def _say_waiting(self, name: str, error: Trouble) -> None:
        if not isinstance(error, OSError):
            self._failed = True
        self._complain(f"{name}: {_why(error)}" + ("; waiting for it" if isinstance(error, OSError) else ""))

    def _say_gone(self, name: str, read_bytes: int) -> None:
        self._complain(
            f"{name}: the file that had this name is no longer in its folder; it was sent up to byte {read_bytes}"
        )

    def _say_what_was_missed(self) -> None:
        if self._state_failure:
            self._failed = True
        if self._options.follow:
            for name in self._names:
                if name not in self._files.was_read:
                    self._failed = True
                    self._complain(f"{name}: was never read")

    def _end_with(self, error: BaseException | None) -> None:
        """Say what has ended the run; a defect is raised."""
        self._failed = True
        if isinstance(error, (GaveUp, NotOurProtocol)):
            self._complain(f"{self._sender.address}: {error}")
        elif isinstance(error, CannotKeep):
            self._complain(str(error))
        elif error:
            raise error

    def _say_summary(self) -> None:
        tally, elapsed_s = self._tally, self._progress.elapsed_s
        total = tally.taken + tally.rejected
        unanswered = f", unanswered {self._sender.unanswered}" if self._sender.unanswered else ""
        self._progress.say(
            f"sent {total}: stored {tally.stored}, duplicate {tally.duplicate}, rejected {tally.rejected}, "
            f"errors {self._sender.errors}{unanswered} in {elapsed_s:.1f} s ({total / elapsed_s:,.0f}/s)"
        )


def _failed(task: asyncio.Future[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


def _why(error: Trouble) -> str:
    return reason(error) if isinstance(error, OSError) else str(error)
