"""Whatever happens to a followed file, to send and to the server, in any order: no line is lost or stored twice."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.polling import wait_until
from tests.harness.sending import Running, Start, messages
from tests.harness.server_process import ServerProcess
from tests.harness.sizes import INTERLEAVINGS

pytestmark = pytest.mark.timeout(300)

STEPS = 40


class Log:
    """A log as its writer and its rotation see it, with every line that was written."""

    def __init__(self, file: Path, chance: random.Random) -> None:
        self.file = file
        self.written: list[str] = []
        self._chance = chance
        self._rotations = itertools.count(1)
        self._sizes = [0]
        file.touch()

    def append(self, *, first: str | None = None) -> None:
        """Append some lines, most of them equal to earlier lines."""
        count = self._chance.randrange(1, 9)
        lines = [self._chance.choice(["ok", "ok", "heading", str(len(self.written))]) for _ in range(count)]
        if first:
            lines.insert(0, first)
        with self.file.open("a") as out:
            out.write("".join(f"{line}\n" for line in lines))
        self.written += lines

    def rename(self) -> None:
        """Rotate by renaming; the writer creates the new file with its next lines."""
        self.file.rename(self._next_name())
        self.append()

    def copy_and_truncate(self, saw_it: Callable[[], bool] | None) -> None:
        """Rotate by copying. If the follower does not see the empty file, the new lines must not equal the old ones."""
        copy = self._next_name()
        shutil.copyfile(self.file, copy)
        os.truncate(self.file, 0)
        if saw_it:
            wait_until(saw_it)
        self.append(first=None if saw_it else copy.name)

    def _next_name(self) -> Path:
        return self.file.with_name(f"{self.file.name}.{next(self._rotations)}")


class Follower:
    """`send --follow --state`, started and ended in every way."""

    def __init__(self, server: ServerProcess, log: Log, start: Start, state: Path) -> None:
        self._state = state
        self._arguments = (server.port, "--topic", "t", "--follow", "--state", state, log.file)
        self._start = start
        self._run: Running | None = None
        self.start()

    def start(self) -> None:
        if self._run is None:
            self._run = self._start(*self._arguments)

    def stop(self) -> None:
        if self._run:
            assert self._run.interrupt(signal.SIGTERM).code in (0, -signal.SIGTERM)  # the latter: it had barely started
            self._run = None

    def kill(self) -> None:
        if self._run:
            self._run.process.kill()
            self._run.process.wait()
            self._run = None

    @property
    def runs(self) -> bool:
        return self._run is not None

    def _files(self) -> list[dict[str, Any]]:
        return json.loads(self._state.read_bytes())["files"] if self._state.exists() else []

    @property
    def generations(self) -> int:
        """How often the follower has seen that a file was emptied."""
        return sum(int(one["ids"]["generation"]) for one in self._files())

    def next_generation(self) -> Callable[[], bool]:
        """A check whether the follower has since seen a file emptied once more."""
        before = self.generations
        return lambda: self.generations > before

    def knows_all_of(self, file: Path) -> bool:
        """Whether the follower has saved that all of this file is acked."""
        status = file.stat()
        return any((one["inode"], one["offset"]) == (status.st_ino, status.st_size) for one in self._files())


@pytest.mark.parametrize("seed", range(INTERLEAVINGS))
def test_no_line_is_lost_and_none_doubled(server: ServerProcess, tmp_path: Path, start: Start, seed: int) -> None:
    chance = random.Random(seed)
    log = Log(tmp_path / "app.log", chance)
    follower = Follower(server, log, start, tmp_path / "state")
    log.append()

    def catch_up() -> None:
        follower.start()
        wait_until(lambda: follower.knows_all_of(log.file) and len(messages(server)) >= len(log.written))

    catch_up()
    has_caught_up = True  # since the last rotation
    for _ in range(STEPS):
        match chance.choices(["append", "rename", "copy", "stop", "kill", "server", "catch up"], [8, 3, 2, 1, 2, 1, 2])[
            0
        ]:
            case "append":
                log.append()
            case "rename":
                log.rename()
                has_caught_up = False
            case "copy":
                if not has_caught_up:  # a follower cannot know that a file was emptied if it has never seen the file
                    catch_up()
                sees = follower.runs and chance.random() < 0.5
                log.copy_and_truncate(follower.next_generation() if sees else None)
                has_caught_up = False
            case "stop":
                follower.stop()
            case "kill":
                follower.kill()
            case "server":
                server.kill()
                server.restart()
            case _:
                catch_up()
                has_caught_up = True
    catch_up()
    follower.stop()
    assert messages(server) == log.written
