"""Addresses: on which the server listens, what is said of them, and which server is asked when none is named."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import ROOT, changes
from tests.harness.background import in_background
from tests.harness.command_line import aggregator, assert_one_line
from tests.harness.polling import DEADLINE_S, wait_until
from tests.harness.private_network import needs_root, private_network
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Peer, event, free_port

has_ipv6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="needs IPv6")


def warnings(server: ServerProcess) -> list[str]:
    return re.findall(r"WARNING (.*)", server.log)


# --- everywhere, and nowhere else


def test_loopback_alone_unless_told_otherwise(server: ServerProcess) -> None:
    assert re.search(r"acked port 127.0.0.1:\d+, silent port 127.0.0.1:\d+, ", server.log)
    assert warnings(server) == []


@pytest.mark.parametrize(
    ("host", "shown", "ipv6"),
    [
        ("0.0.0.0", "0.0.0.0", False),
        pytest.param("::", "[::]", True, marks=has_ipv6),
        pytest.param("[::]", "[::]", True, marks=has_ipv6),
        pytest.param("*", "[::]", True, marks=has_ipv6),
    ],
)
def test_everywhere_is_asked_for_by_name_and_warned_of_once(
    start_server: StartServer, host: str, shown: str, ipv6: bool
) -> None:
    server = start_server("--host", host, "--anonymous", "all")

    for number in (server.port, server.silent_port):
        Peer(number).close()
        if ipv6:
            Peer(number, host="::1").close()
    names = f"{shown}:{server.port} or {shown}:{server.silent_port}"
    assert warnings(server) == [f"no authentication: anybody who reaches {names} may publish and read events"]
    assert f"acked port {shown}:{server.port}, silent port {shown}:{server.silent_port}, " in server.log


@pytest.mark.parametrize("host", ["0", "0x0", "::0"])
def test_other_spellings_of_everywhere_are_told_how_to_say_it(tmp_path: Path, host: str) -> None:
    done = aggregator("--host", host, "--port", "0", cwd=tmp_path)
    assert_one_line(done, 1)
    assert re.search(
        r"cannot listen on \S+ \(--host\): that means every address of this machine: use 0.0.0.0, :: or \*", done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_an_empty_host_is_an_error_with_the_cure(tmp_path: Path) -> None:
    done = aggregator("--host", "", "--port", "0", cwd=tmp_path)
    assert_one_line(done, 2)
    assert "--host" in done.stderr
    assert "0.0.0.0, :: or *" in done.stderr


# --- IPv6


@has_ipv6
def test_a_client_has_one_address_by_whatever_socket_it_comes(start_server: StartServer) -> None:
    server = start_server("--host", "::", "--anonymous", "all", "--address-connections", "2")
    with Peer(server.port) as first, Peer(server.port) as second, Peer(server.port) as third:
        assert first.ask(event("e"))["status"] == "stored"
        assert second.ask(b"PING\n")["pong"]
        assert third.reply()["detail"] == "2 connections from 127.0.0.1 are open; try again later"
        with Peer(server.port, source="127.0.0.2") as neighbour:  # in IPv6 their /64 would be the same
            assert neighbour.ask(b"PING\n")["pong"]


@has_ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_with_and_without_brackets(new_server: StartServer, host: str) -> None:
    server = new_server("--host", host, "--anonymous", "all")
    server.start(free_port())  # a number that the kernel chooses may be another server's in IPv4
    assert f"acked port [::1]:{server.port}, silent port [::1]:{server.silent_port}, " in server.log
    assert warnings(server) == []
    with pytest.raises(ConnectionRefusedError):
        Peer(server.port)
    for to in (f"[::1]:{server.port}", f"::1:{server.port}"):
        assert json.loads(aggregator("admin", "--to", to, "PING", cwd=ROOT).stdout)["pong"]
    server.stop()
    done = aggregator("admin", "--to", f"[::1]:{server.port}", "PING", cwd=ROOT)
    assert done.stderr.startswith(f"aggregator: [::1]:{server.port}: ")


@pytest.mark.root
@needs_root
def test_an_address_that_this_machine_does_not_have_is_left_out(new_server: StartServer, tmp_path: Path) -> None:
    """``localhost`` means ::1 too, even without IPv6."""
    server = new_server("--host", "localhost", prefix=private_network(tmp_path, ipv6=False))
    server.start()
    assert f"acked port 127.0.0.1:{server.port}, silent port 127.0.0.1:{server.silent_port}, " in server.log
    assert warnings(server) == [
        f"cannot listen on [::1]:0 ({option}): Cannot assign requested address; left out"
        for option in ("--port", "--silent-port")
    ]
    assert server.stop() == 0


@pytest.mark.root
@needs_root
def test_a_name_that_means_two_addresses(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aggregator", "--host", "localhost", "--port", "0", "--silent-port", "off"]
    with subprocess.Popen(
        [*private_network(tmp_path), *command, "--db", str(tmp_path / "events.db")],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as server:  # fmt: skip
        assert server.stderr
        ready = server.stderr.readline()
        server.terminate()
        assert server.wait(DEADLINE_S) == 0
    names = re.search(r"INFO aggregator \S+ ready: acked port (\S+) and (\S+), silent port off, ", ready)
    assert names
    assert {name.rpartition(":")[0] for name in names.groups()} == {"127.0.0.1", "[::1]"}


def test_no_address_is_left_is_an_error(tmp_path: Path) -> None:
    done = aggregator("--host", "192.0.2.1", "--port", "0", cwd=tmp_path)
    assert_one_line(done, 1)
    assert "cannot listen on 192.0.2.1:0 (--port): Cannot assign requested address" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- ports


def test_a_port_in_use_is_named_with_its_option_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for options, guilty in (
            (["--port", port, "--silent-port", "0"], "--port"),
            (["--port", "0", "--silent-port", port], "--silent-port"),
        ):
            done = aggregator(*options, cwd=tmp_path)
            assert_one_line(done, 1)
            assert done.stderr == f"aggregator: cannot listen on 127.0.0.1:{port} ({guilty}): Address already in use\n"
            assert list(tmp_path.iterdir()) == []


def test_our_own_two_ports_may_not_be_one(tmp_path: Path) -> None:
    for options in (["--port", "8081"], ["--port", "7000", "--silent-port", "7000"]):
        done = aggregator(*options, cwd=tmp_path)
        assert_one_line(done, 2)
        assert f"--port and --silent-port are both {options[-1]}" in done.stderr
        assert list(tmp_path.iterdir()) == []


def test_nobody_is_accepted_before_the_store_is_open(server: ServerProcess, tmp_path: Path) -> None:
    """A second server on the same database ends, and any client that tries its port before is refused."""
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "aggregator", "serve", "--port", str(port), "--silent-port", "0", "--db", server.db],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as second:  # fmt: skip
        while second.poll() is None:
            with pytest.raises(ConnectionRefusedError):
                Peer(port)
        assert second.stderr
        assert "in use by another aggregator" in second.stderr.read()


def test_another_program_that_comes_before_us(start_server: StartServer) -> None:
    """Two sockets may be bound to one port, as long as neither of them listens."""
    server = start_server(changes=[changes.patient_with_locks])
    assert server.stop() == 0
    lock = server.db.with_name("events.db.lock")
    lock.write_text("")
    writing = sqlite3.connect(server.db, isolation_level=None)
    writing.execute("BEGIN IMMEDIATE")  # the start waits for its end, after it has bound its ports
    with contextlib.closing(writing), socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with in_background(lambda: server.try_to_start(port)):
            wait_until(lambda: lock.read_text() == f"{server.pid}\n")
            other.listen()
            writing.execute("ROLLBACK")
        assert server.wait() == 1
    assert f"aggregator: cannot listen on 127.0.0.1:{port} (--port): Address already in use\n" in server.log
    assert "Traceback" not in server.log


# --- names that are looked up


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_whose_name_server_does_not_answer_can_be_stopped(
    new_server: StartServer, tmp_path: Path, number: signal.Signals
) -> None:
    """The system's resolver keeps asking for a minute and a half."""
    server = new_server("--host", "no.such.host.example", prefix=private_network(tmp_path))
    started = time.monotonic()
    with server.log_path.open("ab") as log:
        server.process = subprocess.Popen(
            [*server.prefix, sys.executable, "-m", "aggregator", "--host", "no.such.host.example", "--port", "0"],
            stderr=log, cwd=ROOT,
        )  # fmt: skip
    udp = Path(f"/proc/{server.pid}/net/udp")
    wait_until(lambda: ":0035" in udp.read_text())  # it asks the name server
    server.signal(number)
    assert server.wait() == 0
    assert time.monotonic() - started < 60
    assert "stopped while looking for no.such.host.example" in server.log
    assert "Traceback" not in server.log


@pytest.mark.root
@needs_root
def test_admin_does_not_wait_for_a_name_server(tmp_path: Path) -> None:
    started = time.monotonic()
    done = aggregator("admin", "--to", "no.such.host.example:1", "PING", cwd=ROOT, prefix=private_network(tmp_path))
    assert (done.returncode, done.stderr) == (1, "aggregator: no.such.host.example:1: no reply within 10 s\n")
    assert time.monotonic() - started < 50


# --- admin without --to


@pytest.mark.parametrize(
    ("listening", "configured"),
    [
        ("127.0.0.1", ""),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "*"),
        ("127.0.0.2", "127.0.0.2"),
        pytest.param("::1", "::", marks=has_ipv6),
        pytest.param("::1", "[::1]", marks=has_ipv6),
    ],
)
def test_admin_and_send_go_to_the_server_that_is_configured(
    start_server: StartServer, tmp_path: Path, listening: str, configured: str
) -> None:
    server = start_server("--host", listening, "--anonymous", "all")
    (tmp_path / "text").write_text("a line\n")
    environment = {"AGGREGATOR_HOST": configured, "AGGREGATOR_PORT": str(server.port)}
    done = aggregator("admin", "HEALTH", cwd=ROOT, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    done = aggregator("send", "--topic", "t", str(tmp_path / "text"), cwd=ROOT, environment=environment)
    assert done.returncode == 0
    assert "stored 1" in done.stderr


def test_any_free_port_is_no_address(tmp_path: Path) -> None:
    done = aggregator("admin", "PING", cwd=tmp_path, environment={"AGGREGATOR_PORT": "0"})
    assert done.returncode == 2
    assert "AGGREGATOR_PORT: expected a number from 1 to 65535" in done.stderr


@pytest.mark.parametrize("to", ["::1", "[::1]", "a:b:80", "host", "host:0", "[::1:80"])
def test_what_is_no_address(tmp_path: Path, to: str) -> None:
    done = aggregator("admin", "--to", to, "PING", cwd=tmp_path)
    assert_one_line(done, 2)
    assert f"expected HOST:PORT, tls:HOST:PORT or unix:PATH, got {to!r}" in done.stderr
