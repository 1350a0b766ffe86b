"""Listening sockets from outside: each is served by its name, and they live on after the server ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregator.server import activation
from aggregator.server.port import PORTS
from tests.harness import ROOT, tls_peer, wire
from tests.harness.activation import listening
from tests.harness.background import in_background
from tests.harness.certificates import Authority
from tests.harness.forward import ForwardPeer, forward
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer


def number_of(one: socket.socket) -> int:
    return int(one.getsockname()[1])


# --- whose they are


@pytest.fixture
def descriptors_from(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, socket.socket]]:
    """Two listening sockets; FIRST_DESCRIPTOR, where the protocol begins to count, is set to the first of them."""
    with listening("acked", "silent") as sockets:
        first = min(one.fileno() for one in sockets.values())
        if [one.fileno() for one in sockets.values()] != [first, first + 1]:
            pytest.skip("the descriptors do not follow each other")
        monkeypatch.setattr(activation, "FIRST_DESCRIPTOR", first)
        yield sockets


def test_without_the_variables_there_are_none() -> None:
    assert activation.inherited(PORTS, {}) == {}


def test_they_are_known_by_name_and_the_variables_are_used_up(descriptors_from: dict[str, socket.socket]) -> None:
    environment = {"LISTEN_PID": f"{os.getpid()}", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "silent:acked", "HOME": "/"}
    found = activation.inherited(PORTS, environment)
    assert environment == {"HOME": "/"}
    numbers = {port.descriptor: [number_of(one) for one in sockets] for port, sockets in found.items()}
    assert numbers == {
        "silent": [number_of(descriptors_from["acked"])],
        "acked": [number_of(descriptors_from["silent"])],
    }
    for one in (one for sockets in found.values() for one in sockets):
        assert not one.get_inheritable()
        one.detach()


def test_those_of_another_process_are_not_ours(caplog: pytest.LogCaptureFixture) -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "acked"}
    assert activation.inherited(PORTS, environment) == {}
    assert "it is for process 1" in caplog.text


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ("aggregator.socket", "is named 'aggregator.socket': FileDescriptorName must be one of acked, silent"),
        ("", "is named 'unknown'"),
    ],
)
def test_a_name_that_is_no_ports(names: str, why: str) -> None:
    environment = {"LISTEN_PID": f"{os.getpid()}", "LISTEN_FDS": "1", "LISTEN_FDNAMES": names}
    with pytest.raises(activation.BadSocket, match=why):
        activation.inherited(PORTS, environment)


def test_what_does_not_listen_is_one_clear_line(new_server: StartServer) -> None:
    with socket.socket() as idle:
        server = new_server(passed_in={"acked": idle})
        assert not server.try_to_start()
    assert (
        server.log == "aggregator: descriptor 3 (acked) is not a listening TCP socket (set Accept=no, ListenStream=)\n"
    )


# --- they are served


def test_every_port_is_served_by_its_name(new_server: StartServer) -> None:
    with listening("forward", "silent", "acked") as sockets:
        server = new_server(passed_in=sockets).start()
        assert server.port == number_of(sockets["acked"])
        assert server.silent_port == number_of(sockets["silent"])
        wait_until(lambda: "passed in, and outlive this server: acked port, silent port, forward port" in server.log)
        with ForwardPeer(number_of(sockets["forward"])) as peer:
            assert peer.ask(forward("t", [{}], "c")) == {"ack": "c"}
        with wire.Peer(server.silent_port) as silent:
            silent.send(wire.event("silent"))
        wait_until(lambda: set(server.stored("t")) == {"c.0", "silent"})


def test_a_port_without_a_socket_is_bound_as_usual(new_server: StartServer) -> None:
    with listening("silent") as sockets:
        server = new_server(passed_in=sockets).start()
        assert server.silent_port == number_of(sockets["silent"])
        assert server.ask("PING")["pong"]


class Producer:
    """Writes events to the silent port like a program that keeps nothing: events that meet an error are not sent again.

    When its connection ends, or meets an error, it opens a new one at once.
    """

    def __init__(self, number: int) -> None:
        self.sent = 0
        self.enough = threading.Event()
        self.at_risk: set[int] = set()
        """Events on connections that ended in an error: the server may not have read some of them."""
        self.on_ended: set[int] = set()
        """Events on connections that the server ended: a killed server may have read some without storing them."""
        self.refused = 0
        self._number = number

    def run(self) -> None:
        while not self.enough.is_set():
            first = self.sent
            try:
                with socket.create_connection(("127.0.0.1", self._number)) as connection:
                    self._write(connection)
                if not self.enough.is_set():
                    self.on_ended.update(range(first, self.sent))
            except ConnectionRefusedError:
                self.refused += 1
                return
            except OSError:
                self.at_risk.update(range(first, self.sent))

    def _write(self, connection: socket.socket) -> None:
        while not self.enough.is_set():
            with contextlib.suppress(BlockingIOError):
                if not connection.recv(1, socket.MSG_DONTWAIT):
                    return
            self.sent += 1
            connection.sendall(wire.event(f"e-{self.sent - 1}"))
            time.sleep(0.002)  # a busy program, but not a flood


ENDS = {"SIGTERM": ServerProcess.stop, "kill -9": ServerProcess.kill}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_that_keeps_nothing_is_never_refused(
    new_server: StartServer, end: str, record_figures: RecordFigures
) -> None:
    """T62: after SIGTERM nothing is lost. A kill costs at most the events that the killed server had not stored."""
    rounds = 3
    with listening("silent", "acked") as sockets:
        server = new_server(passed_in=sockets).start()
        producer = Producer(server.silent_port)

        def send_some() -> None:
            goal = producer.sent + 300
            wait_until(lambda: producer.sent >= goal or producer.refused)

        with in_background(producer.run):
            for _ in range(rounds):
                send_some()
                ENDS[end](server)
                server.restart()
            send_some()
            producer.enough.set()
        count = producer.sent
        assert not producer.refused
        if end != "SIGTERM":
            producer.at_risk |= producer.on_ended
        kept = count - len(producer.at_risk)
        wait_until(lambda: server.ask("STATS")["stored_total"] >= kept)
        assert server.stop() == 0  # it reads everything that is in flight
        server.restart()
        lost = set(range(count)) - {int(event_id[2:]) for event_id in server.stored("t")}
    assert lost <= producer.at_risk
    if end == "SIGTERM":
        assert not lost
    record_figures(f"a socket that lives on ({end})", rounds=rounds, sent=count, never_read=len(lost))


def test_kill_9_loses_no_chunk_that_was_not_acked(new_server: StartServer) -> None:
    """T64."""
    count = 3000
    with listening("forward", "acked") as sockets:
        number = number_of(sockets["forward"])
        server = new_server(passed_in=sockets).start()
        acked = [0]
        refused: list[BaseException] = []

        def send() -> None:
            while acked[0] < count:
                try:
                    with ForwardPeer(number) as peer:
                        while acked[0] < count:
                            n = acked[0]
                            peer.send(forward("t", [{"n": n}], f"c{n}"))
                            if peer.answer() != {"ack": f"c{n}"}:
                                break
                            acked[0] += 1
                except ConnectionRefusedError as error:
                    refused.append(error)
                except OSError:
                    pass

        with in_background(send):
            for _ in range(3):
                goal = acked[0] + 300
                wait_until(lambda goal=goal: acked[0] >= min(goal, count))  # type: ignore[misc]
                server.kill()
                server.restart()
        assert not refused
        assert set(server.stored("t")) == {f"c{n}.0" for n in range(count)}


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="needs systemd-socket-activate (systemd)")
def test_systemds_own_tool(tmp_path: Path) -> None:
    """It starts the server at the first connection, whose event is then stored."""
    number = wire.free_port()
    server = subprocess.Popen(
        ["systemd-socket-activate", f"--listen=127.0.0.1:{number}", "--fdname=acked",
         f"--setenv=PYTHONPATH={ROOT}", f"--setenv=PATH={os.environ['PATH']}",
         sys.executable, "-m", "aggregator", "serve", "--silent-port", "off", "--db", f"{tmp_path}/events.db"],
        stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    try:
        wait_until(lambda: _can_connect(number))
        (reply,) = wire.exchange(number, wire.event("e"))
        assert reply["status"] == "stored"
    finally:
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
    assert f"acked port 127.0.0.1:{number}" in log.decode()


def _can_connect(number: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", number)):
        return True
    return False


def test_unix_sockets_and_tls_ports_are_served_by_their_names_too(new_server: StartServer, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with contextlib.ExitStack() as stack:
        sockets: dict[str, socket.socket] = stack.enter_context(listening("acked", "silent", "tls", "tls-silent"))
        for name in ("socket", "silent-socket"):
            sockets[name] = one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.bind(str(tmp_path / name))
            one.listen()
        server = new_server(*authority.server().options, passed_in=sockets).start()
        context = authority.trusting()
        assert tls_peer.exchange(server.tls_port, context, wire.event("tls"))[0]["status"] == "stored"
        assert tls_peer.exchange(server.tls_silent_port, context, wire.event("tls-silent")) == []
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "socket"))
            client.sendall(wire.event("socket"))
            assert client.recv(4096).startswith(b'{"status":"stored"')
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "silent-socket"))
            client.sendall(wire.event("silent-socket"))
        wait_until(lambda: set(server.stored("t")) == {"tls", "tls-silent", "socket", "silent-socket"})
        assert server.stop() == 0
        assert (tmp_path / "socket").is_socket(), "it lives on"


def test_a_socket_of_another_family_is_one_clear_line(new_server: StartServer) -> None:
    with listening("socket") as sockets:
        server = new_server(passed_in=sockets)
        assert not server.try_to_start()
    assert server.log == (
        "aggregator: descriptor 3 (socket) is not a listening unix socket (set Accept=no, ListenStream=)\n"
    )
