"""CAs and revocation lists replaced while the server runs: a client with a certificate has to show it again."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
from pathlib import Path

import pytest

from tests.harness import identities
from tests.harness.certificates import Authority, Pair
from tests.harness.changes import Change, patient_with_silence
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.tls_peer import TlsPeer
from tests.harness.wire import Peer, event

AGAIN = {"status": "error", "code": "shutting_down", "detail": "the CA or the CRL has changed; connect again"}


class World:
    """A server with a client CA of its own, and two clients that have certificates."""

    def __init__(self, start_tls: StartServer, folder: Path, *made: Change) -> None:
        self.ca = Authority(folder, "own")
        self.good, self.bad = self.ca.issue("good"), self.ca.issue("bad")
        self.authorities, self.crl = folder / "authorities.pem", self.ca.revoked()
        self.authorities.write_bytes(self.ca.certificate.read_bytes())
        self.pair = Pair(folder / "server.pem", folder / "server.key")
        self.renew_server()
        known = identities.write(
            folder / "identities",
            *({"name": name, "cert": [f"DNS:{name}"], "publish": ["*"]} for name in ("good", "bad")),
        )
        self.server: ServerProcess = start_tls(
            "--tls-client-ca", str(self.authorities), "--tls-crl", str(self.crl), "--identities", str(known),
            "--auth-timeout", "600",
            certificate=self.pair, prefix=("setsid",), changes=made,
        )  # fmt: skip

    def renew_server(self) -> None:
        """Install a new certificate for the server."""
        made = self.ca.server()
        self.pair.certificate.write_bytes(made.certificate.read_bytes())
        self.pair.key.write_bytes(made.key.read_bytes())

    def reload(self) -> None:
        seen = self.server.log.count("reloaded")
        self.server.signal(signal.SIGHUP)
        wait_until(lambda: self.server.log.count("reloaded") > seen)

    def client(self, pair: Pair | None = None, version: ssl.TLSVersion | None = None) -> TlsPeer:
        return TlsPeer(self.server.tls_port, self.ca.trusting(pair, version))


@pytest.fixture
def world(start_tls: StartServer, tmp_path: Path) -> World:
    return World(start_tls, tmp_path)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_revoked_certificate_is_of_no_use_from_the_reload_on(world: World, version: ssl.TLSVersion) -> None:
    with (
        world.client(world.bad, version) as bad, world.client(world.good, version) as good,
        world.client() as without, Peer(world.server.port) as plain,
    ):  # fmt: skip
        assert bad.ask(event("e"))["status"] == "stored"
        assert good.ask(b"WHOAMI\n")["by"] == "certificate"
        without.ask(b"PING\n")
        world.ca.revoked(world.bad)  # the same file
        world.reload()
        # Only what was read before the end is answered.
        with contextlib.suppress(OSError):
            bad.send(event("late"))
        assert [reply["code"] for reply in bad.rest()] in ([], ["shutting_down"])
        good.raw_rest()
        assert without.ask(b"PING\n")["pong"]
        assert plain.ask(b"EVENT t late\n")["event"] is None
    with pytest.raises((ssl.SSLError, ConnectionError)), world.client(world.bad, version) as bad:
        bad.ask(b"PING\n")
    with world.client(world.good, version) as good:
        assert good.ask(event("again"))["status"] == "stored"
    world.server.wait_for_log(AGAIN["detail"])


def test_whoever_is_in_the_middle_of_a_handshake_begins_again(world: World) -> None:
    with socket.create_connection(("127.0.0.1", world.server.tls_port)) as stalled:
        stalled.settimeout(60)
        stalled.sendall(b"\x16\x03\x01\x02\x00\x01")
        wait_until(lambda: world.server.ask("STATS")["connections"] == 2)
        world.ca.revoked(world.bad)
        world.reload()
        with contextlib.suppress(ConnectionError):
            assert stalled.recv(1000) == b""
    wait_until(lambda: world.server.ask("STATS")["connections"] == 1)


def test_another_ca_ends_those_of_the_old_one(world: World, foreign: Authority) -> None:
    with world.client(world.good) as good, world.client() as without:
        good.ask(event("e"))
        world.authorities.write_bytes(foreign.certificate.read_bytes())
        world.reload()
        good.raw_rest()
        assert without.ask(b"PING\n")["pong"]


def test_nobody_is_disconnected_where_authorities_and_lists_are_the_same(world: World) -> None:
    with world.client(world.good) as good:
        good.ask(event("e"))
        world.reload()
        world.renew_server()
        world.authorities.touch()
        world.reload()
        assert good.ask(event("f"))["status"] == "stored"


def test_a_silent_client_loses_nothing_that_it_sends_until_it_has_seen_the_end(
    start_tls: StartServer, tmp_path: Path
) -> None:
    world = World(start_tls, tmp_path, patient_with_silence)
    sent = 0
    with TlsPeer(world.server.tls_silent_port, world.ca.trusting(world.good)) as silent:
        silent.send(b"".join(event(f"e{number}") for number in range(100)))
        wait_until(lambda: world.server.ask("STATS")["unique_processed"] == 100)
        world.ca.revoked(world.bad)
        world.reload()
        sent = 200
        silent.send(b"".join(event(f"e{number}") for number in range(100, sent)))
        assert silent.raw_rest() == b""
        silent.fin()
    wait_until(lambda: world.server.ask("STATS")["unique_processed"] == sent)
