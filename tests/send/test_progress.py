"""The progress bar is honest: it counts what was acked, and says what send is waiting for."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT, wire
from tests.harness.background import in_background
from tests.harness.polling import wait_until
from tests.harness.sending import command, has_stored
from tests.harness.server_process import StartServer

pytest.importorskip("tqdm")

pytestmark = pytest.mark.timeout(180)


class Terminal:
    """A run on a terminal, with all that it has shown."""

    def __init__(self, arguments: list[str]) -> None:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 150))
        self.process = subprocess.Popen(arguments, stderr=theirs, stdin=subprocess.DEVNULL, cwd=ROOT)
        os.close(theirs)
        self._shown = b""
        self._reading = in_background(lambda: self._read(ours))

    def _read(self, ours: int) -> None:
        with contextlib.suppress(OSError):  # EIO: the end of a terminal
            while piece := os.read(ours, 4096):
                self._shown += piece
        os.close(ours)

    @property
    def shown(self) -> str:
        return self._shown.decode(errors="replace")

    def has_shown(self, pattern: str) -> bool:
        return re.search(pattern, self.shown) is not None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reading.finish()


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    made: list[Terminal] = []
    yield made
    for one in made:
        one.end()


def percentages(shown: str) -> list[int]:
    return [int(found) for found in re.findall(r"(\d+)%\|", shown)]


def test_nothing_is_done_while_there_is_no_server(
    free_port: int, tmp_path: Path, terminals: list[Terminal], start_server: StartServer
) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"a line of text\n" * 200_000)
    terminals.append(terminal := Terminal(command(free_port, "--topic", "t", file)))
    waiting = rf"waiting for 127\.0\.0\.1:{free_port}, next try in "
    for seconds in (3, 2, 1):  # it counts down
        wait_until(lambda seconds=seconds: terminal.has_shown(rf"{waiting}{seconds} s"))  # type: ignore[misc]
    assert set(percentages(terminal.shown)) == {0}
    assert "MB/s" not in terminal.shown
    start_server("--port", str(free_port))
    assert terminal.process.wait(100) == 0
    wait_until(lambda: "sent 200000: stored 200000" in terminal.shown)
    found = percentages(terminal.shown)
    assert found == sorted(found)
    assert found[-1] > 0


def test_it_stands_still_and_says_why_while_the_server_is_away(
    free_port: int, tmp_path: Path, terminals: list[Terminal], start_server: StartServer
) -> None:
    server = start_server("--port", str(free_port))
    file = tmp_path / "events"
    file.write_bytes(b"".join(wire.events("e", 60_000)))
    terminals.append(terminal := Terminal(command(free_port, file)))
    wait_until(has_stored(server, 10_000))
    server.kill()
    wait_until(lambda: terminal.has_shown(r"waiting for .*, next try in 2 s"))
    away = terminal.shown[terminal.shown.index("waiting for") :]
    assert len(set(percentages(away))) <= 2  # the acks of the last moment are drawn once more
    assert max(percentages(away)) < 100
    server.restart()
    assert terminal.process.wait(100) == 0
    wait_until(lambda: "sent 60000: " in terminal.shown)


def test_a_server_that_does_not_ack_is_waited_for_by_name(
    tmp_path: Path, terminals: list[Terminal], start_server: StartServer
) -> None:
    server = start_server()
    file = tmp_path / "app.log"
    file.write_bytes(b"line\n")
    terminals.append(terminal := Terminal(command(server.silent_port, "--topic", "t", file)))
    wait_until(lambda: terminal.has_shown(rf"waiting for 127\.0\.0\.1:{server.silent_port}, no ack for 3 s"))


def test_what_an_earlier_run_has_sent_counts_as_done(
    tmp_path: Path, terminals: list[Terminal], start_server: StartServer
) -> None:
    server = start_server()
    file, state = tmp_path / "app.log", tmp_path / "state"
    file.write_bytes(b"a line of text\n" * 5000)
    arguments: list[str | Path] = ["--topic", "t", "--state", state, file]
    assert subprocess.run(command(server.port, *arguments), cwd=ROOT, capture_output=True, check=True)
    server.kill()
    with file.open("ab") as out:
        out.write(b"a line of text\n" * 5000)
    terminals.append(terminal := Terminal(command(server.port, *arguments)))
    wait_until(lambda: terminal.has_shown(r" 50%\|.*waiting for "))


def test_there_is_no_bar_where_nobody_sees_it(free_port: int, tmp_path: Path, start_server: StartServer) -> None:
    server = start_server("--port", str(free_port))
    done = subprocess.run(command(server.port, "--topic", "t"), input=b"1\n", cwd=ROOT, capture_output=True, check=True)
    assert done.stderr.startswith(b"sent 1: stored 1")
