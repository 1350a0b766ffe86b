"""Finds content that left its name: files that were renamed, files that were copied and then emptied, missed files.

Only the folder of the file is searched. A file that was compressed or moved elsewhere is not found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final

from aggregator.client.send.identity import FileId, file_id
from aggregator.client.send.track import Track

CLOCK_SLACK_S: Final = 0.02
"""The kernel's clock for files is up to ten milliseconds late."""


def renamed(track: Track) -> int | None:
    """The track's file under its new name: a descriptor for the caller to close. None if not found."""
    assert track.id
    names = [path for path, inode in _neighbours(track) if inode == track.id.inode]
    return _find(names, lambda fd: file_id(fd) == track.id)


def copied(track: Track) -> int | None:
    """A copy of the track's file as it was before it was emptied: a descriptor for the caller to close.

    The name of the copy begins with the file's name. The copy has the same bytes before the offset that was read up to,
    and was created or written after the file was last seen whole.
    """
    seen_at = track.seen_at - CLOCK_SLACK_S
    beginning = os.path.basename(track.path)
    names = [path for path, _ in _neighbours(track) if os.path.basename(path).startswith(beginning)]
    return _find(names, lambda fd: _is_copy(track, fd) and _newest_time(fd) > seen_at)


def missed(track: Track, is_known: Callable[[FileId], bool]) -> int | None:
    """The next file that got the name of the track's file and was renamed too: a descriptor for the caller to close.

    Its name is the old one, followed by a number or a date. It was created after the track's file was last seen to have
    the name, and before the file that has the name now was created. Without known creation times none is found.
    """
    assert track.id
    made_after = max(track.id.born, (track.named_at - CLOCK_SLACK_S) * 1e9)
    current = _born(track.path)
    is_old_name = re.compile(re.escape(os.path.basename(track.path)) + r"[.-]\d[\dT._-]*").fullmatch
    born = {path: _born(path) for path, _ in _neighbours(track) if is_old_name(os.path.basename(path))}
    between = sorted((when, path) for path, when in born.items() if made_after < when < current)
    return _find([path for _, path in between], lambda fd: not is_known(file_id(fd)) and not _is_copy(track, fd))


def _newest_time(fd: int) -> float:
    """When the file was created or last written, whichever is later; a copy may have the write time of its original."""
    return max(file_id(fd).born / 1e9, os.fstat(fd).st_mtime)


def _born(path: str) -> int:
    """When the file was created; 0 if there is no such file."""
    fd = _find([path], lambda fd: True)
    if fd is None:
        return 0
    try:
        return file_id(fd).born
    finally:
        os.close(fd)


def _is_copy(track: Track, fd: int) -> bool:
    return file_id(fd) != track.id and track.matches_copy(fd)


def _neighbours(track: Track) -> list[tuple[str, int]]:
    try:
        with os.scandir(os.path.dirname(track.path)) as entries:
            return [(entry.path, entry.inode()) for entry in entries if entry.is_file()]
    except OSError:
        return []


def _find(paths: list[str], is_it: Callable[[int], bool]) -> int | None:
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            found = is_it(fd)
        except OSError:
            found = False
        if found:
            return fd
        os.close(fd)
    return None
