"""Strangers get few places, little time and a kibibyte. Known clients do not notice them."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest

from aggregator.server.peer_log import PEER_LOG_INTERVAL_S
from tests.harness import elsewhere, identities
from tests.harness.changes import clients_from_elsewhere
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Peer, event


class Known:
    """A server with one identity, which may do everything."""

    def __init__(self, start_server: StartServer, folder: Path, *options: str) -> None:
        token, stanza = identities.with_token("root", publish=["*"], read=["*"], may=["admin"])
        self.auth = identities.auth(token)
        path = identities.write(folder / "identities.toml", stanza)
        self.server: ServerProcess = start_server(
            "--identities", str(path), "--anonymous", "none", *options, changes=[clients_from_elsewhere]
        )

    def client(self) -> Peer:
        peer = Peer(self.server.port)
        assert peer.ask(self.auth)["identity"] == "root"
        return peer


def strangers(stack: contextlib.ExitStack, port: int, count: int, addresses: int) -> list[socket.socket]:
    found = []
    for number in range(count):
        one = stack.enter_context(socket.socket())
        one.bind((f"127.0.1.{1 + number % addresses}", 0))
        one.connect(("127.0.0.1", port))
        found.append(one)
    return found


def is_over(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(1000) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize(("addresses", "places"), [(1, 16), (20, 64)])
@pytest.mark.parametrize("port", ["acked", "silent"])
def test_the_oldest_strangers_go(
    start_server: StartServer, tmp_path: Path, addresses: int, places: int, port: str
) -> None:
    known = Known(start_server, tmp_path, "--auth-timeout", "600")
    with known.client() as client, contextlib.ExitStack() as stack:
        number = known.server.port if port == "acked" else known.server.silent_port
        waiting = strangers(stack, number, 200, addresses)
        wait_until(lambda: client.ask(b"STATS\n")["connections_total"] >= 201)
        stats = client.ask(b"STATS\n")
        assert stats["pending"] == places
        assert stats["evicted"] == 200 - places
        wait_until(lambda: client.ask(b"STATS\n")["connections"] == places + 1)
        wait_until(lambda: [is_over(one) for one in waiting] == [True] * (200 - places) + [False] * places)


def test_a_true_client_is_served_while_strangers_come(start_server: StartServer, tmp_path: Path) -> None:
    known = Known(start_server, tmp_path)
    with contextlib.ExitStack() as stack:
        for number in range(30):
            strangers(stack, known.server.port, 50, 20)
            with known.client() as client:
                assert client.ask(event(f"e{number}"))["status"] == "stored"
        with known.client() as client:
            stats = client.ask(b"STATS\n")
            assert stats["pending"] <= 64
            assert stats["connections_refused"] == 0


@pytest.mark.parametrize("port", ["acked", "silent", "wrap"])
def test_whoever_could_show_nothing_is_turned_away_at_once(
    start_server: StartServer, tmp_path: Path, port: str
) -> None:
    known = Known(start_server, tmp_path, "--auth-timeout", "600", "--wrap-port", "0")
    number = known.server.port if port == "acked" else known.server.port_of(port)
    with known.client() as client:
        for _ in range(3):
            with Peer(number, source=elsewhere.STRANGER) as stranger:
                told = stranger.raw_rest()
                assert (b"tokens are accepted over TLS, loopback and unix sockets only" in told) is (port == "acked")
        stats = client.ask(b"STATS\n")
        assert (stats["auth_failed"], stats["pending"], stats["evicted"]) == (3, 0, 0)


def test_strangers_have_so_many_seconds(start_server: StartServer, tmp_path: Path) -> None:
    known = Known(start_server, tmp_path, "--auth-timeout", "2")
    with Peer(known.server.port) as silent, Peer(known.server.port) as slow, known.client() as client:
        started = time.monotonic()
        slow.send(b"AUTH ")
        assert [reply["code"] for reply in silent.rest()] == ["auth_required"]
        assert time.monotonic() - started >= 1.9
        assert [reply["code"] for reply in slow.rest()] == ["auth_required"]
        assert client.ask(b"PING\n")["pong"]
        wait_until(lambda: client.ask(b"STATS\n")["connections"] == 1)
        assert client.ask(b"STATS\n")["auth_failed"] == 2


def test_a_byte_a_time_does_not_extend_the_time(start_server: StartServer, tmp_path: Path) -> None:
    known = Known(start_server, tmp_path, "--auth-timeout", "1")
    with Peer(known.server.port) as slow:
        deadline = time.monotonic() + 30
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                slow.send(b" ")
                slow.socket.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    if slow.socket.recv(1000):
                        break
        assert time.monotonic() < deadline


def test_what_strangers_send_is_not_kept(start_server: StartServer, tmp_path: Path) -> None:
    known = Known(start_server, tmp_path, "--max-pending", "900", "--auth-timeout", "600")
    with known.client() as client, contextlib.ExitStack() as stack:
        started = time.monotonic()
        waiting = strangers(stack, known.server.port, 200, 1)
        before = known.server.rss_bytes
        for one in waiting:
            one.sendall(b"AUTH " + b"x" * 1000)
        wait_until(lambda: client.ask(b"STATS\n")["pending"] == 200)
        for one in waiting:
            with contextlib.suppress(OSError):
                one.sendall(b"x" * 100_000)
        wait_until(lambda: client.ask(b"STATS\n")["connections"] == 1)
        assert client.ask(b"STATS\n")["auth_failed"] == 200
        assert known.server.rss_bytes - before < 40 << 20
        known.server.wait_for_log("was turned away")
        most = 1 + (time.monotonic() - started) / PEER_LOG_INTERVAL_S
        assert known.server.log.count("was turned away") <= most, "the log is rate-limited"


def test_strangers_that_read_nothing_are_gone_soon(start_server: StartServer, tmp_path: Path) -> None:
    known = Known(start_server, tmp_path)
    with known.client() as client, contextlib.ExitStack() as stack:
        for one in strangers(stack, known.server.port, 300, 20):
            with contextlib.suppress(OSError):
                one.sendall(b"PING\n" * 1000)
        wait_until(lambda: client.ask(b"STATS\n")["connections"] == 1)


# --- which ports start


@pytest.mark.parametrize("host", ["0.0.0.0", "*"])
def test_a_port_that_would_let_anybody_in_does_not_start(new_server: StartServer, tmp_path: Path, host: str) -> None:
    server = new_server("--host", host)
    assert not server.try_to_start()
    assert server.wait() == 1
    assert "would let anybody in: set --tls-port, rules in --identities, or --anonymous all" in server.log
    assert not server.db.exists()

    _, stanza = identities.with_token("web", publish=["*"])
    path = identities.write(tmp_path / "identities.toml", stanza)
    server = new_server("--host", host, "--identities", str(path), "--anonymous", "none")
    assert not server.try_to_start(), "tokens are of no use on a plain port"
    assert "would let nobody in, because tokens are not accepted there: set --tls-port, rules" in server.log

    path = identities.write(tmp_path / "identities.toml", {**stanza, "address": ["10.1.0.0/24"]})
    server = new_server("--host", host, "--identities", str(path))
    assert server.try_to_start()
    assert "no authentication" not in server.log


def test_a_mistake_in_the_file_is_one_line_and_no_start(new_server: StartServer, tmp_path: Path) -> None:
    path = identities.write(tmp_path / "identities.toml", {"name": "web", "uid": ["root"]})
    server = new_server("--identities", str(path))
    assert not server.try_to_start()
    assert server.wait() == 1
    why = "identity \"web\": uid: expected the number of a user, got 'root'"
    assert server.log == f"aggregator: {path} (--identities): {why}\n"


def test_a_file_that_keeps_nobody_out_is_named_in_the_log(new_server: StartServer, tmp_path: Path) -> None:
    _, stanza = identities.with_token("web", publish=["*"])
    path = identities.write(tmp_path / "identities.toml", stanza)
    for anonymous, warned in (("all", True), ("loopback", False)):
        server = new_server("--identities", str(path), "--anonymous", anonymous).start()
        assert ("--identities keeps nobody out" in server.log) is warned


# --- addresses


def test_an_address_is_enough_to_publish(start_server: StartServer, tmp_path: Path) -> None:
    path = identities.write(
        tmp_path / "identities.toml",
        {"name": "lan", "address": ["10.1.0.0/24"], "publish": ["app"], "read": ["*"], "may": ["admin"]},
    )
    server = start_server("--identities", str(path), "--wrap-port", "0", changes=[clients_from_elsewhere])
    with Peer(server.port, source=elsewhere.KNOWN_ADDRESS) as peer:
        peer.send(event("a", "app") + event("b", "db") + b"EVENTS app\nSTATS\nWHOAMI\n")
        stored, refused, unread, unseen, whoami = peer.replies(5)
    assert stored["status"] == "stored"
    assert [reply["code"] for reply in (refused, unread, unseen)] == ["not_allowed"] * 3
    assert (whoami["identity"], whoami["by"]) == ("lan", "address")
    with Peer(server.wrap_port, source=elsewhere.KNOWN_ADDRESS) as peer:
        peer.send(b"a text\n")
        peer.half_close()
        assert peer.raw_rest() == b""
    wait_until(lambda: server.ask("STATS")["unique_processed"] == 2)
