"""How far each file is read and acked: in memory, and with ``--state`` in a file from which another process goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from aggregator.client.reply import reason
from aggregator.client.send.identity import FileId, file_id
from aggregator.client.send.line_ids import LineIds
from aggregator.client.send.state import BadState, StateFile
from aggregator.client.send.track import Track

MAX_FILES: Final = 1000
"""Most files that are remembered. The least recently used ones are forgotten, and sent again if they come back."""

NewIds = Callable[[FileId], LineIds | None]


class Positions:
    """The tracks of all files, by the files' identities."""

    def __init__(self, new_ids: NewIds, path: Path | None, purpose: dict[str, str | None]) -> None:
        """``purpose`` is what the positions are good for: a file with another purpose is refused.

        Raises BadState and OSError.
        """
        self._new_ids = new_ids
        self._purpose = purpose
        self._tracks: dict[FileId, Track] = {}
        self._file = StateFile(path) if path else None
        self._saved: list[dict[str, Any]] | None = None
        self._saves = 0
        self.resumed_bytes = 0
        """How many bytes of the files that are read were already sent by other processes."""
        self.failure = ""
        """Why the positions could not be saved the last time."""
        if self._file:
            self._load(self._file.load())

    @property
    def are_kept(self) -> bool:
        """Whether the positions are saved, so that another process can go on from them."""
        return self._file is not None

    def open(self, name: str, fd: int) -> Track | None:
        """Claim an open file; None while another task reads it, perhaps under another name."""
        identity = file_id(fd)
        track = self._tracks.get(identity) or self._new_track(name, identity)
        if track.is_claimed:
            return None
        self._tracks.pop(identity, None)
        self._tracks[identity] = track  # now the most recently used
        track.is_claimed = True
        self.resumed_bytes += track.resumed_bytes
        track.resumed_bytes = 0
        track.is_over = False
        track.name, track.path = name, os.path.abspath(name)
        self._forget_some()
        return track

    def knows(self, identity: FileId) -> bool:
        """Whether the file was read, or is being read, under whatever name."""
        return identity in self._tracks

    def pass_over(self, original: Track, fd: int) -> None:
        """Mark an open file as read to its end, because it is a copy of what the original was."""
        identity = file_id(fd)
        copy = self._tracks.setdefault(identity, self._new_track(original.path, identity))
        if not copy.is_claimed:
            copy.skip_to_end(fd)

    def left_behind(self, name: str) -> Iterator[Track]:
        """Files that had this name when another process read them, and that it did not read to their end."""
        path = os.path.abspath(name)
        for track in list(self._tracks.values()):
            if track.path == path and not track.is_over and not track.is_claimed:
                yield track

    async def save(self) -> None:
        """Save the positions if they have changed, in a thread, because a disk may be slow. Sets ``failure``."""
        if not self._file:
            return
        files = [track.to_json() for track in self._tracks.values()]
        # That a file was checked again is not a change.
        changed = [{**one, "seen_at": 0, "named_at": 0} for one in files]
        if self._saved == changed:
            return
        fields = {"purpose": self._purpose, "files": files}
        self._saves += 1
        try:
            await asyncio.to_thread(self._file.save, self._saves, fields)
        except OSError as error:
            self.failure = reason(error)
        else:
            self._saved = changed
            self.failure = ""

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _new_track(self, name: str, identity: FileId) -> Track:
        return Track(name, identity, self._new_ids(identity), remembers=self.are_kept)

    def _forget_some(self) -> None:
        for identity in list(self._tracks)[:-MAX_FILES]:
            if not self._tracks[identity].is_claimed:
                del self._tracks[identity]

    def _load(self, fields: dict[str, Any]) -> None:
        if not fields:
            return
        try:
            for name, value in self._purpose.items():
                if fields["purpose"][name] != value:
                    was = fields["purpose"][name]
                    raise BadState(f"written with {name} {was!r}, and this is {value!r}: name another file")
            for one in fields["files"]:
                identity = FileId(one["inode"], one["born"], one["device"])
                track = self._new_track(one["path"], identity)
                track.resume(one)
                self._tracks[identity] = track
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadState(f"not written by send --state ({error!r})") from None
