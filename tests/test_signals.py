"""Signals: those that stop a server properly, those that it ignores, and terminals that are closed.

SIGHUP ends a server that has a terminal. A server without one reads its files again: see tests/test_reload.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT, changes
from tests.harness.polling import DEADLINE_S, wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.standard_error import Channel, ServerAt
from tests.harness.wire import Peer, event, events, exchange


def stored_after_a_restart(server: ServerProcess) -> int:
    server.restart()
    return int(server.ask("STATS")["stored_total"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_event_on_its_way_to_the_silent_port_is_lost(start_server: StartServer, number: signal.Signals) -> None:
    server = start_server("--drain-timeout", "60")
    sent = events("e", 20_000)
    with Peer(server.silent_port) as shipper:
        shipper.send(b"".join(sent[:10_000]))
        server.signal(number)
        shipper.send(b"".join(sent[10_000:15_000]))
        assert shipper.raw_rest() == b""  # the server's half of the close
        shipper.send(b"".join(sent[15_000:]))
    assert server.wait() == 0
    assert f"{number.name}: stopping" in server.log
    assert stored_after_a_restart(server) == 20_000


def test_a_hangup_is_no_second_signal(start_server: StartServer) -> None:
    """systemd may send SIGHUP after SIGTERM."""
    server = start_server("--drain-timeout", "60", prefix=("setsid",))
    with Peer(server.silent_port) as shipper:
        shipper.send(event("before"))
        server.signal(signal.SIGTERM)
        assert shipper.raw_rest() == b""
        server.signal(signal.SIGHUP)
        shipper.send(event("after"))
    assert server.wait() == 0
    assert stored_after_a_restart(server) == 2


def test_a_hangup_ends_no_server_without_a_terminal(start_server: StartServer) -> None:
    server = start_server(prefix=("setsid",))
    with Peer(server.port) as peer:
        server.signal(signal.SIGHUP)
        wait_until(lambda: "reloaded" in server.log)
        assert peer.ask(event("after"))["status"] == "stored"
    assert server.stop() == 0


def test_a_signal_that_comes_twice_at_once_is_one(start_server: StartServer) -> None:
    """``timeout`` sends a signal to its child, and then to its process group."""
    server = start_server("--drain-timeout", "60", changes=[changes.signals_repeat_for_a_minute])
    with Peer(server.silent_port) as shipper:
        shipper.send(event("before"))
        server.signal(signal.SIGTERM)
        assert shipper.raw_rest() == b""
        server.signal(signal.SIGTERM)
        shipper.send(event("after"))
    assert server.wait() == 0
    assert stored_after_a_restart(server) == 2


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU])
def test_signals_that_mean_nothing_here_end_nothing(server: ServerProcess, number: signal.Signals) -> None:
    with Peer(server.port) as peer:
        peer.ask(event("before"))
        server.signal(number)
        assert peer.ask(event("after"))["status"] == "stored"
    assert server.stop() == 0


def test_nohup_is_obeyed(start_server: StartServer) -> None:
    server = start_server(prefix=("nohup",))
    with Peer(server.port) as peer:
        server.signal(signal.SIGHUP)
        assert peer.ask(event("after"))["status"] == "stored"
    assert server.stop() == 0
    assert "SIGHUP" not in server.log


def test_a_terminal_that_is_closed_ends_its_server_in_order(tmp_path: Path) -> None:
    """From then on the log has nowhere to go."""
    with contextlib.closing(Channel.terminal()) as terminal:
        server = ServerAt(tmp_path, terminal.its, "--drain-timeout", "60", control=True)
        try:
            server.ready(terminal)
            with Peer(server.silent_port) as shipper:
                shipper.send(b"".join(events("before", 1000)))
                terminal.close()
                assert shipper.raw_rest() == b""
                server.process.send_signal(signal.SIGHUP)  # a terminal sends it more than once
                shipper.send(b"".join(events("after", 1000)))
            assert server.process.wait(DEADLINE_S) == 0
        finally:
            server.end()
    again = ServerProcess(tmp_path, db=server.db).start()
    try:
        assert again.ask("STATS")["stored_total"] == 2000
    finally:
        again.end()


def test_writing_to_a_terminal_from_the_background_stops_no_server(tmp_path: Path) -> None:
    """With ``stty tostop`` the terminal would stop it."""
    with contextlib.closing(Channel.terminal()) as terminal:
        # A shell is in the foreground, and the server is a background job.
        serve = f"{sys.executable} -m aggregator serve --port 0 --silent-port off --db {tmp_path}/e.db"
        words = f"stty tostop; set -m; {serve} & wait"
        shell = subprocess.Popen(
            ["setsid", "--ctty", "sh", "-c", words], stdin=terminal.its, stdout=terminal.its, stderr=terminal.its,
            cwd=ROOT,
        )  # fmt: skip
        try:
            port = int(terminal.read_until(r"ready: acked port 127.0.0.1:(\d+)")[1])
            assert exchange(port, event("e"))[0]["status"] == "stored"
        finally:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(Path(f"{tmp_path}/e.db.lock").read_text()), signal.SIGTERM)
            shell.wait(DEADLINE_S)
