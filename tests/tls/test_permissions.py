"""Which listener accepts which proof: the table in README.md, cell by cell."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aggregator.access import token
from tests.harness import ROOT, identities
from tests.harness.certificates import Authority, Pair
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess
from tests.harness.tls_peer import TlsPeer
from tests.harness.wire import TIMEOUT_S, Peer, event
from tests.tls.conftest import TLS_PORTS

README = (ROOT / "README.md").read_text()
(TABLE,) = re.findall(r"^<!-- listeners -->\n(.*?)^<!-- /listeners -->", README, re.MULTILINE | re.DOTALL)
HEAD, _, *ROWS = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in TABLE.splitlines()]
CELLS = [(row[0], listener, cell) for row in ROWS for listener, cell in zip(HEAD[1:], row[1:], strict=True) if cell]

USER, OTHER_USER = 1001, 65534
OUT_OF_DATE = "a known certificate, with an out-of-date CRL"

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users on a unix socket"),
]


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """To the server, a client that connects in this block belongs to this user."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


class World:
    """Four servers with six listeners each: one identifies clients by an address, two ask for certificates (one of
    these has a revocation list that is out of date), and one does neither."""

    def __init__(self, folder: Path, authority: Authority, foreign: Authority, pair: Pair) -> None:
        self.folder = folder
        self.token, stanza = identities.with_token(
            "web", publish=["*"], uid=[USER], cert=["DNS:known", "DNS:revoked", "DNS:good"]
        )
        self.contexts = {
            "": authority.trusting(),
            "a known certificate": authority.trusting(authority.issue("known")),
            "an unknown certificate": authority.trusting(authority.issue("unknown")),
            "a certificate of another CA": authority.trusting(foreign.issue("known")),
            "a revoked certificate": authority.trusting(revoked := authority.issue("revoked")),
            OUT_OF_DATE: authority.trusting(authority.issue("good")),
        }
        crls = [authority.revoked(days=0).rename(folder / "old.pem"), authority.revoked(revoked)]
        by_address = {**stanza, "address": ["127.0.0.0/8"]}
        old, asking = (("--tls-client-ca", str(authority.certificate), "--tls-crl", str(crl)) for crl in crls)
        self.servers = {
            name: self._server(name, pair, known, *options)
            for name, known, options in (
                ("plain", stanza, ()), ("address", by_address, ()), ("certificate", stanza, asking),
                (OUT_OF_DATE, stanza, old),
            )
        }  # fmt: skip

    def _server(self, name: str, pair: Pair, known: dict[str, object], *options: str) -> ServerProcess:
        folder = self.folder / name
        folder.mkdir()
        path = identities.write(folder / "identities.toml", known)
        return ServerProcess(
            folder, *TLS_PORTS, *pair.options, "--identities", str(path), "--anonymous", "none", *options,
            "--socket", str(folder / "socket"), "--silent-socket", str(folder / "silent"), "--socket-mode", "0666",
        )  # fmt: skip

    def server(self, proof: str) -> ServerProcess:
        kinds = (OUT_OF_DATE, "address", "certificate")
        return self.servers[next((kind for kind in kinds if kind in proof), "plain")]

    def send(self, proof: str, listener: str, data: bytes) -> None:
        """Send all of the data, and wait for the end of the connection."""
        server = self.server(proof)
        silent = "silent" in listener
        if "socket" in listener:
            path = server.folder / ("silent" if silent else "socket")
            with as_user(USER if "user" in proof else OTHER_USER), socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(path))
                _say(peer, data)
        elif "TLS" in listener:
            number = server.tls_silent_port if silent else server.tls_port
            context = self.contexts.get(proof, self.contexts[""])
            with contextlib.suppress(ssl.SSLError, ConnectionError), TlsPeer(number, context) as over_tls:
                over_tls.send(data)
                over_tls.close_notify()
                over_tls.fin()
                over_tls.raw_rest()
        else:
            with Peer(server.silent_port if silent else server.port) as plain:
                _say(plain.socket, data)

    def has(self, proof: str, event_id: str) -> bool:
        """Whether an event is stored, as the server's own user sees it."""
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(self.server(proof).folder / "socket"))
            last = event(f"behind {event_id}")  # once this one is stored, all earlier ones are
            return b'"event":null' not in _say(peer, last + f"EVENT t '{event_id}'\n".encode())


def _say(peer: socket.socket, data: bytes) -> bytes:
    peer.settimeout(TIMEOUT_S)
    found = b""
    with contextlib.suppress(ConnectionError):
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        while part := peer.recv(1 << 16):
            found += part
    return found


@pytest.fixture(scope="module")
def world(foreign: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    own = Authority(tmp_path_factory.mktemp("own"))  # because this module revokes certificates
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # accessible to all users
        made = World(Path(folder), own, foreign, own.server())
        try:
            for server in made.servers.values():
                server.start()
            yield made
        finally:
            for server in made.servers.values():
                server.end()


def test_the_table_has_every_proof_on_every_listener_that_may_take_it(world: World) -> None:
    """A row that this module does not know would be tested as a client without proof."""
    anywhere = {"nothing", "an unknown token", "a known token"}
    tls = set(world.contexts) - {""}
    takes = {
        listener: anywhere
        | (tls if "TLS" in listener else set())
        | ({"a known user"} if "socket" in listener else {"a known address"})
        for listener in ("plain", "silent", "TLS", "TLS, silent", "socket", "silent socket")
    }

    assert {(proof, listener) for proof, listener, _ in CELLS} == {
        (proof, listener) for listener, proofs in takes.items() for proof in proofs
    }


@pytest.mark.parametrize(("proof", "listener", "cell"), CELLS, ids=[f"{one}: {two}" for one, two, _ in CELLS])
def test_a_cell(world: World, proof: str, listener: str, cell: str) -> None:
    first: dict[str, Callable[[], bytes]] = {
        "an unknown token": lambda: identities.auth(token.new()),
        "a known token": lambda: identities.auth(world.token),
    }
    event_id = f"{proof}: {listener}"
    world.send(proof, listener, first.get(proof, bytes)() + event(event_id))

    if cell == "yes":
        wait_until(lambda: world.has(proof, event_id))
    else:
        assert cell == "no"
        assert not world.has(proof, event_id)
