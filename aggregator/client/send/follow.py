"""Files, pipes and standard input as lines that know their offsets: read to the end, or followed like `tail -F`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from aggregator.client.send import content, rotated
from aggregator.client.send.compressed import Damaged
from aggregator.client.send.content import Refused
from aggregator.client.send.inputs import STDIN, id_of, is_file, may_grow, opened, read_stream
from aggregator.client.send.line_ids import LineIds
from aggregator.client.send.positions import Positions
from aggregator.client.send.track import Place, Track

POLL_S: Final = 0.25
"""How often a followed file is checked: what users of tail are used to, rounded down."""

MAX_RESTARTS: Final = 3
"""How often a file may be emptied while it is read once."""

Places = AsyncIterator[list[Place]]
"""Lines in order, some at a time."""

Trouble = OSError | Refused | Damaged
"""Why a file is not read, or is read no further."""


class Files:
    """Reads and follows files. ``as_text`` takes all content for text, whatever it looks like."""

    def __init__(
        self,
        positions: Positions,
        stream_ids: Callable[[int], LineIds | None],
        on_gone: Callable[[str, int], None],
        *,
        as_text: bool,
    ) -> None:
        """``stream_ids`` is for an open file or pipe whose position is not remembered.

        ``on_gone`` is called for a file that another process has begun to read and that cannot be found any more. It
        gets the file's name, and how many bytes of it were read.
        """
        self._positions = positions
        self._stream_ids = stream_ids
        self._on_gone = on_gone
        self._as_text = as_text
        self.was_read: set[str] = set()
        """The names under which there was a file or a pipe to read, even an empty one."""

    async def read(self, name: str) -> Places:
        """Read to the end; an unterminated rest is a line too. Raises OSError, Refused, Damaged."""
        async for places in self._read_left_behind(name):
            yield places
        with opened(name) as fd:
            if name == STDIN or not is_file(fd):
                async for places in self._read_stream(name, fd):
                    yield places
                return
            track = self._claim(name, fd)
            if track:
                async with _released(track):
                    async for places in self._read_file(fd, track, once=True):
                        yield places

    async def follow(self, name: str, on_trouble: Callable[[Trouble], None]) -> Places:
        """Read a file as it grows, then the next file that gets its name, and so on; read a pipe only to its end.

        ``on_trouble`` is called once for each time that the file is missing or cannot be read; then the file is waited
        for.
        """
        if not may_grow(name):
            async for places in self.read(name):
                yield places
            return
        async for places in self._read_left_behind(name):
            yield places
        said = ""
        while True:
            try:
                with opened(name) as fd:
                    if track := self._claim(name, fd):
                        async with _released(track):
                            async for places in self._read_file(fd, track, once=False):
                                said = ""
                                yield places
                            track.is_over = True
                        async for places in self._read_missed(name, track):
                            yield places
                        continue
            except (OSError, Refused, Damaged) as error:
                if said != str(error):
                    on_trouble(error)
                said = str(error)
            await asyncio.sleep(POLL_S)

    def _claim(self, name: str, fd: int) -> Track | None:
        track = self._positions.open(name, fd)
        self.was_read.add(name)
        if track and self._as_text:
            track.take_as_text()
        return track

    async def _read_left_behind(self, name: str) -> Places:
        """Read first the rests of files that another process read under this name and that have other names now."""
        if name == STDIN:
            return
        named = id_of(name)
        behind = [track for track in self._positions.left_behind(name) if track.id != named]
        for track in behind:
            rest = rotated.renamed(track)
            track.is_over = True
            if rest is None:
                self._on_gone(name, track.offset)
                continue
            try:
                track.is_claimed = True
                async with _released(track):
                    async for places in self._read_file(rest, track, once=True):
                        yield places
            finally:
                os.close(rest)
        if behind:
            async for places in self._read_missed(name, behind[-1]):
                yield places

    async def _read_missed(self, name: str, track: Track) -> Places:
        """Read then the files that got this name later, and lost it before anybody looked."""
        while (fd := rotated.missed(track, self._positions.knows)) is not None:
            try:
                found = self._claim(name, fd)
                assert found  # the file was not known before
                assert found.id
                found.named_at = found.id.born / 1e9
                async with _released(found):
                    async for places in self._read_file(fd, found, once=True):
                        yield places
                    found.is_over = True
                track = found
            finally:
                os.close(fd)

    async def _read_file(self, fd: int, track: Track, *, once: bool) -> Places:
        """Read an open file to its end if ``once``, else until another file has its name. Then a rest counts too."""
        is_last_look = False
        restarts = 0
        while True:
            # Checked before reading, so that everything that was written before the check is read.
            is_last_look = _has_another(track, fd) or once or is_last_look
            looked_at = time.time()
            while data := track.read(fd, is_whole=is_last_look):
                for places in track.take(data):
                    yield places
                await asyncio.sleep(0)
            if data is None:
                restarts += 1
                if once and restarts > MAX_RESTARTS:
                    raise OSError("it is rewritten faster than it can be read")
                async for places in self._read_copy(track):
                    yield places
                await asyncio.sleep(POLL_S)  # otherwise nothing but a file that is constantly rewritten would be sent
                continue
            track.seen_at = looked_at
            if is_last_look:
                break
            await asyncio.sleep(POLL_S)
        for places in track.finish():
            yield places

    async def _read_copy(self, track: Track) -> Places:
        """Read the rest of a file that was emptied, if it is in a copy that was made before; then begin again."""
        copy = rotated.copied(track)
        if copy is not None:
            try:
                while data := track.read(copy, is_whole=True):
                    for places in track.take(data):
                        yield places
                    await asyncio.sleep(0)
                self._positions.pass_over(track, copy)
            finally:
                os.close(copy)
        with contextlib.suppress(Damaged):  # the content is gone, whatever it was
            for places in track.finish():
                yield places
        if self._positions.are_kept:
            # From here on the positions say that all of this was sent, so it must be sent first.
            await track.drained()
        track.begin_again()
        await self._positions.save()

    async def _read_stream(self, name: str, fd: int) -> Places:
        track = Track(name, None, self._stream_ids(fd))
        self.was_read.add(name)
        if self._as_text:
            track.take_as_text()
        head = await read_stream(fd)
        while not self._as_text and head and content.may_become_known(head) and (more := await read_stream(fd)):
            head += more
        if head and not self._as_text:
            track.recognise(head)
        data = head
        while data:
            for places in track.take(data):
                yield places
            data = await read_stream(fd)
        for places in track.finish():
            yield places


@contextlib.asynccontextmanager
async def _released(track: Track) -> AsyncIterator[None]:
    """Let others read the file afterwards, unless it was read in part and the next part turned out to be unreadable."""
    try:
        yield
    except (Refused, Damaged):
        track.is_claimed = track.offset > 0
        raise
    except BaseException:
        track.is_claimed = False
        raise
    track.is_claimed = False


def _has_another(track: Track, fd: int) -> bool:
    """Whether another file has the name and is not empty: until then the writer may still be writing to this one."""
    looked_at = time.time()
    try:
        named = os.stat(track.path)
    except OSError:  # renamed, and no new one yet
        return False
    if os.path.samestat(os.fstat(fd), named):
        track.named_at = looked_at
        return False
    return named.st_size > 0
