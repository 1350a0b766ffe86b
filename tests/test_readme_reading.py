"""What README.md says of reading is true: its lines run, and its programs are the ones that run here."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.harness import ROOT, wire
from tests.harness.polling import DEADLINE_S, wait_until
from tests.harness.server_process import ServerProcess
from tests.harness.tailing import store

README: Final = (ROOT / "README.md").read_text()
READING: Final = README.partition("\n## Reading\n")[2].partition("\n## ")[0]
PROGRAMS: Final = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
CELLS: Final = [row.split(" | ", 1)[1] for row in re.findall(r"^\| .*`.*", READING, re.MULTILINE)]
LINES: Final = [line.replace("\\|", "|") for cell in CELLS for line in re.findall("`([^`]+ [^`]+)`", cell)]
TYPED: Final = [line for line in LINES if "aggregator" in line]
SENT: Final = [line for line in LINES if re.match("[A-Z]{3,} |printf", line)]


def program(word: str, server: ServerProcess) -> list[str]:
    (found,) = [text for text in PROGRAMS if word in text]
    return [sys.executable, "-c", found.replace("8080", str(server.port))]


def stages(line: str) -> list[list[str]]:
    """The words of each program in a pipeline."""
    words = shlex.split(line, posix=True)
    ends = [index for index, word in enumerate(words) if word == "|"]
    starts = [0, *(end + 1 for end in ends)]
    return [words[start:end] for start, end in zip(starts, [*ends, len(words)], strict=True)]


def test_there_are_lines_of_both_kinds_and_no_others() -> None:
    assert min(len(TYPED), len(SENT)) >= 3
    assert len(TYPED) + len(SENT) == len(LINES) >= 12


@pytest.mark.parametrize("line", TYPED)
def test_each_line_is_one_that_can_be_typed(line: str) -> None:
    for words in stages(line):
        if words[0] == "aggregator":
            done = subprocess.run(
                [sys.executable, "-m", *words, "--help"], capture_output=True, cwd=ROOT, check=False, text=True,
                timeout=2 * DEADLINE_S,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("line", SENT)
def test_each_command_is_taken(server: ServerProcess, line: str) -> None:
    command = line if not line.startswith("printf") else stages(line)[0][1].removesuffix("\\n")
    with wire.Peer(server.port) as peer:
        assert peer.ask(command.encode() + b"\n")["status"] == "ok"


def test_the_consumer_leaves_nothing_out_when_it_is_killed(server: ServerProcess, tmp_path: Path) -> None:
    levels = ["INFO", "ERROR", "DEBUG"]
    shown: list[str] = []
    for number in range(4):
        lines = [
            wire.event(f"{number}-{n}", "app.x", f'{{"level":"{levels[n % 3]}","message":"m{n}"}}') for n in range(600)
        ]
        output = tmp_path / str(number)
        with output.open("wb") as file:
            consumer = subprocess.Popen(program("errors", server), stdout=file, cwd=ROOT)
        try:
            store(server.port, lines)
            wait_until(lambda output=output: output.read_bytes().count(b"\n") >= 20)  # type: ignore[misc]
            if number == 3:
                wait_until(lambda: server.ask("CURSORS")["cursors"][0]["lag"] == 0)
        finally:
            consumer.kill()
            consumer.wait()
        shown += output.read_text().rpartition("\n")[0].splitlines()  # without a line that the kill has cut
    expected = {f"{number}-{n} m{n}" for number in range(4) for n in range(1, 600, 3)}
    assert set(shown) == expected


def test_the_logging_program_logs(server: ServerProcess) -> None:
    done = subprocess.run(program("LogHandler", server), capture_output=True, cwd=ROOT, timeout=2 * DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    first, second = (event["payload"] for event in server.listed("app.web"))
    assert (first["message"], first["user"], first["level"]) == ("user ann logged in", {"id": 7}, "INFO")
    assert second["exception"].endswith("KeyError: 'session'")


def test_the_sending_program_waits_for_its_acks(server: ServerProcess) -> None:
    done = subprocess.run(program("sender.store", server), capture_output=True, cwd=ROOT, timeout=2 * DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"stored 1\n998\n", b"")
