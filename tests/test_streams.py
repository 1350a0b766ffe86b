"""Standard input, output and error as a caller may leave them: closed, full, without a reader, or a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.harness.background import in_background
from tests.harness.command_line import aggregator, assert_one_line
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess
from tests.harness.standard_error import Channel
from tests.harness.wire import event, exchange, free_port

HOSTILE = "esc \x1b[31m, csi \x9b31m, del \x7f, rlo \u202e, tag \U000e0041, é and \U0001f600"
"""In JSON only the first character has to be escaped."""

IN_JSON = json.dumps(HOSTILE, ensure_ascii=False)


@pytest.fixture
def to(server: ServerProcess) -> tuple[str, str, str]:
    """The first words of a command to a server that has one event."""
    exchange(server.port, event("e", payload='{"text":' + IN_JSON + "}"))
    return ("admin", "--to", f"127.0.0.1:{server.port}")


# --- the server


def test_a_server_without_standard_streams(tmp_path: Path) -> None:
    """No file of the database gets descriptor 0, 1 or 2, and the server ends as usual."""
    port = free_port()
    command = [sys.executable, "-m", "aggregator", "--port", str(port), "--silent-port", "off"]
    command += ["--db", str(tmp_path / "events.db")]
    with subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=ROOT) as server:

        def answers() -> bool:
            assert server.poll() is None
            with contextlib.suppress(ConnectionRefusedError):
                return exchange(port, event("e"))[0]["status"] in ("stored", "duplicate")
            return False

        wait_until(answers)
        files = {number: os.readlink(f"/proc/{server.pid}/fd/{number}") for number in (0, 1, 2)}
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    assert files == dict.fromkeys((0, 1, 2), "/dev/null")


# --- results


@pytest.mark.parametrize("words", [["STATS"], ["EVENTS", "t"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_failure(to: tuple[str, ...], words: list[str], unbuffered: str) -> None:
    """For example ``admin HEALTH | grep -q healthy`` in a script that checks all exit codes."""
    done = aggregator(*to, *words, shell="| true; exit ${PIPESTATUS[0]}", environment={"PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["serve", "--help"]])
@pytest.mark.parametrize("shell", ["| true", "| exit 0"])
def test_help_that_nobody_reads(words: list[str], shell: str) -> None:
    done = aggregator(*words, shell=f"{shell}; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["admin", "PING"], ["--version"], ["--help"]])
def test_a_full_disk_is_one_line(server: ServerProcess, words: list[str], unbuffered: str) -> None:
    environment = {"PYTHONUNBUFFERED": unbuffered, "AGGREGATOR_PORT": str(server.port)}
    done = aggregator(*words, shell=">/dev/full", environment=environment)
    assert_one_line(done, 1, "standard output: No space left on device")


@pytest.mark.parametrize("shell", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_dev_null(to: tuple[str, ...], shell: str) -> None:
    done = aggregator(*to, "HEALTH", shell=shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&-" not in shell.replace("2>&-", ""))
    assert aggregator("--help", shell=shell).returncode == 0
    assert aggregator("admin", "--nonsense", shell=shell).returncode == 2


@pytest.mark.parametrize("shell", ["2>/dev/full", "2> >(true)"])
def test_a_complaint_that_cannot_be_written_keeps_its_exit_code(shell: str) -> None:
    assert aggregator("admin", "--to", f"127.0.0.1:{free_port()}", "PING", shell=shell).returncode == 1
    assert aggregator("admin", "--nonsense", shell=shell).returncode == 2


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=["latin-1", "ascii", "C"],
)
def test_the_bytes_in_a_pipe_do_not_depend_on_the_locale(to: tuple[str, ...], environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "aggregator", *to, "EVENT", "t", "e"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env={**os.environ, **environment}, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert IN_JSON.encode() in done.stdout
    assert aggregator("--help", environment=environment).returncode == 0


# --- a terminal


def on_a_terminal(*words: str, **environment: str) -> str:
    """What ``aggregator`` with these words shows on a terminal."""
    with contextlib.closing(Channel.terminal()) as terminal:
        with subprocess.Popen(
            [sys.executable, "-m", "aggregator", *words], stdout=terminal.its, stderr=terminal.its, cwd=ROOT,
            env={**os.environ, **environment},
        ) as process:  # fmt: skip
            text = terminal.read_all()
        assert process.returncode in (0, 1)
    return text


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_nothing_on_a_terminal_is_a_command_to_it(to: tuple[str, ...], encoding: str) -> None:
    shown = on_a_terminal(*to, "EVENT", "t", "e", PYTHONIOENCODING=encoding)
    text = shown.replace("\n", "")
    assert text.isprintable()
    assert json.loads(shown)["event"]["payload"]["text"] == HOSTILE, "it is the same JSON"
    for escaped in (r"\u001b", r"\u009b", r"\u007f", r"\u202e", r"\udb40\udc41"):
        assert escaped in shown.lower()
    assert ("é" in shown) == (encoding == "utf-8")


def test_what_a_command_says_of_its_arguments_is_printable(to: tuple[str, ...]) -> None:
    shown = on_a_terminal(*to, "EVENTS", "t", "AFTER", "\u202e\x9b")
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown)["status"] == "rejected"
    assert on_a_terminal("admin", "--to", "\x1b]0;title\x07:1", "PING").replace("\n", "").isprintable()


@contextlib.contextmanager
def answering(data: bytes) -> Iterator[int]:
    """A server of another kind, which sends this to its first client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(data)

        with in_background(answer):
            yield listener.getsockname()[1]


@pytest.mark.parametrize(
    "reply", [b'{"status":"ok","x":"\x1b[2J\xff\xe2\x80\xae"}\n', b"220 \x1b[2J welcome\r\n", b'{"status":"ok"\x9b}\n']
)
def test_a_rogue_server_writes_nothing_to_a_terminal(reply: bytes) -> None:
    with answering(reply) as port:
        shown = on_a_terminal("admin", "--to", f"127.0.0.1:{port}", "PING")
    assert shown
    assert re.sub(r"\n", "", shown).isprintable()
    assert "Traceback" not in shown


# --- words that look like options


@pytest.mark.parametrize("topic", ["-x", "--to", "--", "-h", "--help", "a b", "'"])
def test_all_that_follows_the_command_is_sent(server: ServerProcess, topic: str) -> None:
    exchange(server.port, event("e", topic=topic))
    done = aggregator("admin", "--to", f"127.0.0.1:{server.port}", "EVENTS", topic)
    assert [one["topic"] for one in json.loads(done.stdout)["events"]] == [topic]


def test_a_command_is_one_line(server: ServerProcess) -> None:
    done = aggregator("admin", "--to", f"127.0.0.1:{server.port}", "EVENTS", "a\nb")
    assert_one_line(done, 2, "expected one command on one line")
    assert_one_line(aggregator("admin"), 2, "expected one command on one line")
    assert json.loads(aggregator("admin", "--to", f"127.0.0.1:{server.port}", "--", "PING").stdout)["pong"]
