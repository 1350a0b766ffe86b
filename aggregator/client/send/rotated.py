"""Where the rest of a file is that is not under its name any more: renamed, or copied and then emptied.

Only the folder of the file is searched. What was compressed or moved elsewhere is not found.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from aggregator.client.send.identity import file_id
from aggregator.client.send.track import Track

CLOCK_SLACK_NS: Final = 20_000_000
"""The kernel's clock for files is up to ten milliseconds late."""


def renamed(track: Track) -> int | None:
    """The file that the track is of, under its new name: a descriptor for the caller to close. None if not found."""
    assert track.id
    names = [path for path, inode in _neighbours(track) if inode == track.id.inode]
    return _find(names, lambda fd: file_id(fd) == track.id)


def copied(track: Track) -> int | None:
    """A copy of what the track's file was before it was emptied: a descriptor for the caller to close.

    Its name begins with the file's name. It was made after the file was last seen whole, and it has the same bytes
    before the place that was read up to.
    """
    made_after = track.seen_at * 1e9 - CLOCK_SLACK_NS
    beginning = os.path.basename(track.path)
    names = [path for path, _ in _neighbours(track) if os.path.basename(path).startswith(beginning)]
    return _find(names, lambda fd: _is_copy(track, fd) and _made_ns(fd) > made_after)


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


def _made_ns(fd: int) -> int:
    return file_id(fd).born or os.fstat(fd).st_ctime_ns
