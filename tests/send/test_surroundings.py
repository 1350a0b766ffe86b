"""The surroundings of a run: signals, descriptors, and the three standard streams in every state."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.client.terminal import printable
from tests.harness import ROOT, wire
from tests.harness.polling import wait_until
from tests.harness.sending import Start, command, has_stored
from tests.harness.server_process import ServerProcess

pytestmark = pytest.mark.timeout(180)


# --- signals


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_follower_ends_with_its_summary(
    server: ServerProcess, tmp_path: Path, start: Start, number: signal.Signals
) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n2\n")
    following = start(server.port, "--topic", "t", "--follow", file)
    wait_until(has_stored(server, 2))
    outcome = following.interrupt(number)
    assert outcome.code == 0
    assert outcome.has(sent=2, stored=2)


def test_hanging_up_twice_does_not_cut_the_last_acks_short(
    free_port: int, tmp_path: Path, start: Start, start_server: Callable[..., ServerProcess]
) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n2\n")
    following = start(free_port, "--topic", "t", "--follow", file)
    wait_until(lambda: "cannot connect" in following.errors)
    for _ in range(3):
        following.process.send_signal(signal.SIGHUP)
    start_server("--port", str(free_port))
    outcome = following.wait()
    assert outcome.code == 0
    assert outcome.has(sent=2, stored=2)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("way", [[], ["--follow"]])
def test_the_signals_of_log_rotation_are_ignored(
    server: ServerProcess, tmp_path: Path, start: Start, number: signal.Signals, way: list[str]
) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n")
    sending = start(server.port, "--topic", "t", *way, file, "-")
    wait_until(has_stored(server, 1))
    for _ in range(3):
        sending.process.send_signal(number)
    sending.stdin.write(b"2\n")
    sending.stdin.close()
    wait_until(has_stored(server, 2))
    outcome = sending.interrupt(signal.SIGTERM) if way else sending.wait()
    assert outcome.code == 0
    assert outcome.has(sent=2, stored=2)


def test_hanging_up_a_run_that_waits_for_input_ends_it_with_a_summary(server: ServerProcess, start: Start) -> None:
    sending = start(server.port, "--topic", "t")
    sending.stdin.write(b"1\n")
    sending.stdin.flush()
    wait_until(has_stored(server, 1))
    outcome = sending.interrupt(signal.SIGHUP)
    assert outcome.code == 130
    assert outcome.has(sent=1, stored=1)


def test_nohup_keeps_it_running(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n")
    arguments = ["nohup", *command(server.port, "--topic", "t", "--follow", file)]
    with subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        wait_until(has_stored(server, 1))
        process.send_signal(signal.SIGHUP)
        with file.open("ab") as out:
            out.write(b"2\n")
        wait_until(has_stored(server, 2))
        process.terminate()
        assert process.wait(60) == 0


# --- descriptors


def limit_descriptors(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def many_files(folder: Path) -> list[Path]:
    files = [folder / f"{number}.log" for number in range(60)]
    for file in files:
        file.write_bytes(b"line\n")
    return files


def follow_with_limit(server: ServerProcess, tmp_path: Path, hard: int, stored: int) -> tuple[int, str]:
    arguments = command(server.port, "--topic", "t", "--follow", *many_files(tmp_path))
    with subprocess.Popen(
        arguments, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=limit_descriptors(40, hard),
    ) as process:  # fmt: skip
        wait_until(has_stored(server, stored))
        process.terminate()
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors


def test_the_soft_limit_of_descriptors_is_raised(server: ServerProcess, tmp_path: Path) -> None:
    code, errors = follow_with_limit(server, tmp_path, 4096, 60)
    assert code == 0
    assert "sent 60: stored 60" in errors


def test_a_file_that_was_never_read_is_a_failure(server: ServerProcess, tmp_path: Path) -> None:
    code, errors = follow_with_limit(server, tmp_path, 40, 5)
    assert code == 1
    assert "Too many open files; waiting for it" in errors
    assert "was never read" in errors
    assert "Traceback" not in errors


def test_a_file_that_never_came_is_a_failure(server: ServerProcess, tmp_path: Path, start: Start) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n")
    (tmp_path / "empty").touch()
    following = start(server.port, "--topic", "t", "--follow", file, tmp_path / "empty", tmp_path / "missing")
    wait_until(has_stored(server, 1))
    outcome = following.interrupt()
    assert outcome.code == 1
    assert outcome.lines == [
        f"aggregator: {tmp_path / 'missing'}: No such file or directory; waiting for it",
        f"aggregator: {tmp_path / 'missing'}: was never read",
    ]


# --- standard streams


def shell(server: ServerProcess, script: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script in which SEND stands for the command, with a topic."""
    send = " ".join(command(server.port, "--topic", "t"))
    return subprocess.run(
        ["bash", "-c", script.replace("SEND", send)], capture_output=True, cwd=ROOT, timeout=100, check=False
    )


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("echo 1 | SEND 2>&-", 0, b""),
        ("echo 1 | SEND >&- 2>&-", 0, b""),
        ("echo 1 | SEND >&-", 0, b"sent 1: stored 1"),
        ("echo 1 | SEND 2>/dev/null", 0, b""),
        ("echo 1 | SEND 2>/dev/full", 1, b""),
        ("echo 1 | SEND >/dev/full", 0, b"sent 1: stored 1"),
        ("set -o pipefail; (sleep 0.5; echo 1) | SEND 2> >(true)", 0, b""),
        ("set -o pipefail; { echo 1 | SEND 2>&1; } | true", 0, b""),
        ("SEND <<<1 >&- 2>&-", 0, b""),
        ("echo 1 | LC_ALL=C SEND", 0, b"sent 1: stored 1"),
        ("echo 1 | PYTHONIOENCODING=latin-1 SEND", 0, b"sent 1: stored 1"),
    ],
)
def test_everything_is_sent_whatever_becomes_of_the_screen(
    server: ServerProcess, script: str, code: int, said: bytes
) -> None:
    done = shell(server, script)
    assert len(server.listed("t")) == 1
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_descriptors_that_were_closed_are_not_taken_by_sockets(
    server: ServerProcess, tmp_path: Path, closed: str
) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n2\n")
    done = shell(server, f"SEND {file} {closed}")
    assert done.returncode == 0
    assert len(server.listed("t")) == 2
    assert shell(server, f"SEND {closed}").returncode == 1  # there is nothing to read from


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_in_any_encoding_are_told(server: ServerProcess, tmp_path: Path, encoding: str) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xc3\xbc"
    done = subprocess.run(
        [*command(server.port, "--topic", "t"), name], capture_output=True, cwd=ROOT, check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(b"aggregator: ")
    assert b": No such file or directory\n" in done.stderr
    if encoding == "utf-8":
        assert name in done.stderr  # the bytes as they are


def test_a_screen_that_stands_still_holds_up_nothing(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "events"
    bad = b"".join(b'{"topic":%d}\n' % number for number in range(100))
    file.write_bytes(bad + b"".join(wire.events("e", 200)))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, b"x" * 65536):
            pass
    os.set_blocking(writer, True)
    with subprocess.Popen(command(server.port, file), stderr=writer, cwd=ROOT) as process:
        os.close(writer)
        assert process.wait(60) == 1  # the code for bad lines; what counts is that it ends
    os.close(reader)
    assert len(server.stored("t")) == 200


# --- terminals

EVIL = "\x1b]0;owned\x07\x9b31m\x7f\u202egpj.exe\u00a0\U000e0001"
SHOWN = "\\u001B]0;owned\\u0007\\u009B31m\\u007F\\u202Egpj.exe\\u00A0\\uDB40\\uDC01"


def on_terminal(*arguments: str | Path) -> bytes:
    """What a run shows on a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(arguments, stderr=theirs, stdin=subprocess.DEVNULL, cwd=ROOT):
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the end of a terminal
            while piece := os.read(ours, 4096):
                shown += piece
        os.close(ours)
    return shown


def test_nothing_that_was_read_steers_the_terminal(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / f"events{EVIL}"
    file.write_text(f'{{"topic":"{EVIL}"}}\n{EVIL}\n[{{"topic":"t{EVIL[9:]}","event_id":1}}]\n')
    arguments: list[str | Path] = [*command(server.port, file), tmp_path / f"missing{EVIL}"]
    shown = on_terminal(*arguments)
    visible = shown.replace(b"\x1b[A", b"").replace(b"\x1b[K", b"").decode()  # the progress bar's own
    assert SHOWN in visible
    assert [c for c in visible if not c.isprintable() and c not in "\r\n"] == []
    done = subprocess.run(arguments, capture_output=True, cwd=ROOT, check=False)
    assert f"events{EVIL}:1: ".encode() in done.stderr
    assert f"missing{EVIL}".encode() in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 日本 😀", "plain ü 日本 😀"),
        (EVIL, SHOWN),
        ("a\nb\tc", "a\\u000Ab\\u0009c"),
        ("\udcff", "\\uDCFF"),
        ("", ""),
    ],
)
def test_what_is_printable_stays(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(text=st.text())
def test_inside_json_it_means_the_same(text: str) -> None:
    original = json.dumps(text, ensure_ascii=False)
    assert printable(original).isprintable()
    assert json.loads(printable(original)) == text


def test_a_stopped_terminal_holds_up_nothing(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"1\n")
    ours, theirs = pty.openpty()
    arguments = command(server.port, "--topic", "t", "--follow", file)
    with subprocess.Popen(arguments, stdin=theirs, stderr=theirs, cwd=ROOT) as process:
        wait_until(has_stored(server, 1))
        os.write(ours, b"\x13")  # Ctrl-S
        for number in range(2, 6):
            with file.open("ab") as out:
                out.write(b"%d\n" % number)
            wait_until(has_stored(server, number))
        process.terminate()
        assert process.wait(60) == 0
    os.close(theirs)
    with contextlib.suppress(OSError):
        while select.select([ours], [], [], 0)[0] and os.read(ours, 4096):
            pass
    os.close(ours)


def test_the_client_is_there_for_programs() -> None:
    program = "from aggregator.client import GaveUp, NotOurProtocol, Sender, ask; print(Sender, ask)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
