"""The log: whether or not anyone reads it, the server goes on. Also, what its lines look like."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.harness import changes
from tests.harness.disk import SmallDisk
from tests.harness.polling import wait_until
from tests.harness.server_process import StartServer
from tests.harness.standard_error import READY, Channel, ServerAt
from tests.harness.wire import Json, Peer, event, events, exchange, free_port

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) .*")

StartAt = Callable[..., ServerAt]


@pytest.fixture
def start_at(tmp_path: Path) -> Iterator[StartAt]:
    """Start a server whose standard error is this channel or this descriptor."""
    servers: list[ServerAt] = []

    def start(stderr: Channel | int, *options: str, **settings: object) -> ServerAt:
        fd = stderr if isinstance(stderr, int) else stderr.its
        servers.append(ServerAt(tmp_path, fd, *options, **settings))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture(params=["pipe", "terminal"])
def channel(request: pytest.FixtureRequest) -> Iterator[Channel]:
    with contextlib.closing(getattr(Channel, request.param)()) as made:
        yield made


@pytest.fixture
def pipe() -> Iterator[Channel]:
    with contextlib.closing(Channel.pipe()) as made:
        yield made


@pytest.fixture
def terminal() -> Iterator[Channel]:
    with contextlib.closing(Channel.terminal()) as made:
        yield made


def stats(server: ServerAt) -> Json:
    return exchange(server.port, b"STATS\n")[0]


def make_it_log(server: ServerAt) -> None:
    """Make the server log one line, as any client can."""
    before = stats(server)["rejected"]
    exchange(server.silent_port, b"%\n")
    wait_until(lambda: stats(server)["rejected"] == before + 1)


def assert_serves(server: ServerAt) -> None:
    replies = exchange(server.port, b"".join(events("after", 100)) + b"HEALTH\n")
    assert {reply["status"] for reply in replies[:100]} <= {"stored", "duplicate"}
    assert replies[100]["health"] == "healthy"


def test_nobody_reads_the_log_and_everybody_is_served(channel: Channel, start_at: StartAt) -> None:
    """A full pipe, and a terminal whose other end is not read."""
    server = start_at(channel).ready(channel)
    channel.fill()
    make_it_log(server)

    assert_serves(server)
    with Peer(server.silent_port) as silent:
        silent.send(b"".join(events("silent", 1000)))
    assert server.stop() == 0
    assert "silent port: rejected" not in channel.text


def test_a_terminal_is_halted_by_ctrl_s(terminal: Channel, start_at: StartAt) -> None:
    server = start_at(terminal).ready(terminal)
    terminal.halt()
    make_it_log(server)

    assert_serves(server)
    terminal.go_on()
    terminal.read_until("silent port: rejected line 1 of .*: bad_line")
    terminal.halt()
    assert server.stop() == 0


def test_what_python_itself_complains_of_waits_for_nobody(pipe: Channel, start_at: StartAt) -> None:
    """Python writes to standard error on its own, wherever it finds something."""
    server = start_at(pipe, changes=[changes.pinging_leaves_a_defect]).ready(pipe)
    pipe.fill()
    for _ in range(3):
        assert exchange(server.port, b"PING\n")[0]["pong"]
    assert_serves(server)
    server.process.send_signal(signal.SIGTERM)
    text = pipe.read_all()
    assert server.process.wait() == 0
    assert text.count("RuntimeError: a defect in a finalizer") == 3
    assert text.count("RuntimeError: a defect in a thread") == 3


def test_a_server_starts_although_nobody_reads_its_log(pipe: Channel, start_at: StartAt) -> None:
    pipe.fill()
    server = start_at(pipe, port=free_port()).answering()

    assert_serves(server)
    assert server.stop() == 0


def test_a_second_signal_ends_a_server_whose_log_nobody_reads(pipe: Channel, start_at: StartAt) -> None:
    server = start_at(pipe, "--drain-timeout", "60").ready(pipe)
    pipe.fill()
    with Peer(server.silent_port) as stubborn, Peer(server.port) as asking:
        stubborn.send(event("first"))
        server.process.send_signal(signal.SIGTERM)
        assert asking.raw_rest() == b""  # the signal has arrived

        def still_runs() -> bool:
            with contextlib.suppress(OSError):
                stubborn.send(event("more"))  # because silence would end it too
            server.process.send_signal(signal.SIGTERM)
            return server.process.poll() is None

        wait_until(lambda: not still_runs())
    assert server.process.wait() == 1


def test_lines_that_are_left_out_are_counted_and_said_in_their_place(pipe: Channel, start_at: StartAt) -> None:
    server = start_at(pipe, "--log-level", "debug", changes=[changes.short_log_queue]).ready(pipe)
    pipe.fill()
    resets = 60
    for _ in range(resets):
        with Peer(server.port) as peer:
            peer.ask(b"PING\n")
            peer.reset()
    wait_until(lambda: stats(server)["connections"] == 1)

    gap = pipe.read_until(r"Z WARNING (\d+) log lines are missing here, .*\n")
    said = gap.string.count("reset by peer")
    assert 0 < said < 30, "some waited"
    assert said + int(gap[1]) >= resets
    assert server.stop() == 0
    rest = pipe.read_all()[gap.end() :]
    assert "SIGTERM: stopping" in rest
    assert "stopped: 0 events" in rest
    assert "missing" not in rest


def test_every_line_gets_through_a_pipe_that_is_small_and_never_waits(pipe: Channel, start_at: StartAt) -> None:
    """Another program that uses the same pipe or terminal can make it non-blocking."""
    server = start_at(pipe, "--log-level", "debug").ready(pipe)
    pipe.narrow()
    for _ in range(200):
        with Peer(server.port) as peer:
            peer.ask(b"PING\n")
            peer.reset()
    wait_until(lambda: stats(server)["connections"] == 1)

    server.process.send_signal(signal.SIGTERM)
    text = pipe.read_all()
    assert server.process.wait() == 0
    assert text.count("reset by peer") == 200
    assert "missing" not in text
    assert "stopped: 0 events" in text


@pytest.mark.parametrize("gone", ["full", "closed"])
def test_a_log_that_cannot_be_written_harms_nobody(gone: str, pipe: Channel, start_at: StartAt) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    server = start_at(full if gone == "full" else pipe, port=free_port())
    os.close(full)
    pipe.close()

    server.answering()
    assert_serves(server)
    assert server.stop() == 0


@pytest.mark.root
def test_lines_that_a_full_disk_did_not_take_are_written_when_there_is_space(start_at: StartAt, tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "disk")
    if why := disk.make("64k"):
        pytest.skip(why)
    try:
        log = disk.folder / "server.log"
        with log.open("ab", buffering=0) as file:
            server = start_at(file.fileno(), port=free_port()).answering()
            wait_until(lambda: READY.search(log.read_text()))
            server.silent_port = int(READY.search(log.read_text())[2])  # type: ignore[index]
            with contextlib.suppress(OSError), (disk.folder / "rest").open("wb", buffering=0) as rest:
                while True:
                    rest.write(bytes(4096))
            file.write(b"-" * (4086 - log.stat().st_size) + b"\n")  # leaves room for nine bytes of the next line
            make_it_log(server)
            assert_serves(server)
            wait_until(lambda: log.stat().st_size == 4096)
            (disk.folder / "rest").unlink()
            assert server.stop() == 0
        lines = log.read_text().splitlines()[2:]
        assert all(LINE.fullmatch(line) for line in lines)
        words = ["silent port: rejected line 1", "SIGTERM: stopping", "stopped: 100 events"]
        assert [word in line for word, line in zip(words, lines, strict=True)] == [True] * 3
    finally:
        disk.remove()


def test_stamps_are_in_utc_and_say_so(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    server = start_server()
    server.stop()
    lines = server.log.splitlines()
    assert len(lines) == 3
    assert all(LINE.fullmatch(line) for line in lines), lines
    stamp = datetime.fromisoformat(lines[-1].partition(" ")[0])
    assert abs(stamp.timestamp() - server.log_path.stat().st_mtime) < 60


def test_debug_shows_clients_and_no_sql(start_server: StartServer) -> None:
    server = start_server("--log-level", "debug")
    exchange(server.port, event("e") + b"STATS\nEVENTS t\n")
    with Peer(server.port) as peer:
        peer.ask(b"PING\n")
        peer.reset()
    wait_until(lambda: "reset by peer" in server.log)
    server.stop()

    lines = server.log.splitlines()
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert not [line for line in lines if "PRAGMA" in line or "executing" in line or "SELECT" in line]
