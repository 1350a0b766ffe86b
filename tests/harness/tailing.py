"""What readers read, with ``aggregator tail`` and ``aggregator export`` as their users run them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import termios
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.harness import ROOT, wire
from tests.harness.polling import DEADLINE_S, wait_until


def store(port: int, lines: Sequence[bytes]) -> list[int]:
    """Have these events stored; return their seqs."""
    with wire.Peer(port) as peer:
        seqs: list[int] = []
        for start in range(0, len(lines), 500):
            part = lines[start : start + 500]
            peer.send(b"".join(part))
            seqs += [reply["seq"] for reply in peer.replies(len(part))]
        return seqs


def remove_oldest(db: Path, blocks: int = 1) -> int:
    """Do what retention will do, to a store that no process has open; return the last seq that is gone."""
    with closing(sqlite3.connect(db)) as connection, connection:
        firsts = [first for (first,) in connection.execute("SELECT first_seq FROM blocks ORDER BY first_seq")]
        connection.execute("DELETE FROM blocks WHERE first_seq < ?", (firsts[blocks],))
        return int(firsts[blocks]) - 1


def command(word: str, port: int, *arguments: str | Path | int) -> list[str]:
    return [sys.executable, "-m", "aggregator", word, "--to", f"127.0.0.1:{port}", *map(str, arguments)]


class Outcome:
    """The outcome of a run."""

    def __init__(self, code: int, output: bytes, errors: bytes) -> None:
        self.code = code
        self.output = output
        self.errors = errors.decode()
        assert "Traceback" not in self.errors

    @property
    def lines(self) -> list[bytes]:
        return self.output.splitlines()

    @property
    def events(self) -> list[Any]:
        return [json.loads(line) for line in self.lines]


def run(word: str, port: int, *arguments: str | Path | int, **options: Any) -> Outcome:
    """Run it to its end."""
    done = subprocess.run(
        command(word, port, *arguments), stdin=subprocess.DEVNULL, capture_output=True, cwd=ROOT,
        timeout=3 * DEADLINE_S, check=False, **options,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


class Running:
    """A run that continues until it is told to stop; its output goes into a file."""

    def __init__(self, folder: Path, word: str, port: int, *arguments: str | Path | int) -> None:
        folder.mkdir(exist_ok=True)
        self._output, self._errors = folder / "stdout", folder / "stderr"
        with self._output.open("ab") as output, self._errors.open("ab") as errors:
            self.process = subprocess.Popen(
                command(word, port, *arguments), stdin=subprocess.DEVNULL, stdout=output, stderr=errors, cwd=ROOT
            )

    @property
    def output(self) -> bytes:
        return self._output.read_bytes()

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    @property
    def seqs(self) -> list[int]:
        """The seqs of the events that are shown as JSON, in complete lines."""
        return seqs(self.output.rpartition(b"\n")[0].splitlines())

    def wait_for(self, count: int) -> None:
        """Wait until the output has this many lines."""
        wait_until(lambda: self.output.count(b"\n") >= count)

    def wait_for_seq(self, seq: int) -> None:
        """Wait until this event is the last one shown."""
        wait_until(lambda: self.seqs[-1:] == [seq])

    def end(self, number: signal.Signals = signal.SIGINT) -> Outcome:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> Outcome:
        code = self.process.wait(2 * DEADLINE_S)
        return Outcome(code, self.output, self._errors.read_bytes())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def seqs(lines: Iterable[bytes]) -> list[int]:
    return [json.loads(line)["seq"] for line in lines]


def on_terminal(
    word: str, port: int, *arguments: str | Path | int, variables: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """What a run shows on a terminal, where standard output and error are the same; it must exit with 0."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    environment = {**os.environ, "TERM": "xterm", **variables}
    with subprocess.Popen(
        command(word, port, *arguments), stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment
    ) as process:
        os.close(theirs)
        shown = read_terminal(ours)
    os.close(ours)
    assert process.returncode == 0, shown
    return shown


def read_terminal(terminal: int) -> bytes:
    """Everything that is shown until no process has the terminal open any more."""
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the end of a terminal
        while piece := os.read(terminal, 4096):
            shown += piece
    return shown
