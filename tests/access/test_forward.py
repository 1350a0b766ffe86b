"""Permissions on the Forward port, which has no tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.harness import elsewhere, identities
from tests.harness.changes import clients_from_elsewhere
from tests.harness.forward import ForwardPeer, forward
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Json, Peer

pytest.importorskip("msgpack", reason="the Forward port needs the extra forward")

KEY = b"the shared key"
LAN: dict[str, Any] = {"name": "lan", "address": ["10.1.0.0/24"], "publish": ["app.*"]}


class World:
    """A server with a Forward port that clients on other machines can reach."""

    def __init__(self, start_server: StartServer, folder: Path, key: bool = False, *options: str) -> None:
        path = identities.write(folder / "identities.toml", LAN)
        if key:
            (folder / "key").write_bytes(KEY)
            options += ("--forward-shared-key-file", str(folder / "key"))
        self.server: ServerProcess = start_server(
            "--identities", str(path), "--forward-port", "0", *options, changes=[clients_from_elsewhere]
        )

    def client(self, source: str) -> ForwardPeer:
        return ForwardPeer(self.server.port_of("forward"), source=source)

    def clients(self) -> list[Json]:
        with Peer(self.server.port) as peer:
            clients = peer.ask(b"CLIENTS\n")["clients"]
        return [(one["identity"], one["by"]) for one in clients if one["port"] == "forward"]


def test_a_chunk_with_a_topic_that_may_not_be_published_is_not_stored_at_all(
    start_server: StartServer, tmp_path: Path
) -> None:
    world = World(start_server, tmp_path)
    with world.client(elsewhere.KNOWN_ADDRESS) as peer:
        assert peer.ask(forward("app.a", [{"n": 1}], "good")) == {"ack": "good"}
        assert world.clients() == [("lan", "address")]
        peer.send(forward("db", [{"n": 1}, {"n": 2}], "bad") + forward("app.a", [{"n": 3}], "late"))
        assert peer.answer() is None
    stats = world.server.ask("STATS")

    assert stats["rejected_by_code"] == {"not_allowed": 2}
    assert stats["unique_processed"] == 1
    world.server.wait_for_log('closed: lan may not publish to this topic: "db"')


def test_whoever_is_not_known_is_turned_away_at_once(start_server: StartServer, tmp_path: Path) -> None:
    world = World(start_server, tmp_path)
    with world.client(elsewhere.STRANGER) as peer:
        assert peer.answer() is None
    why = "turned away: no rule identifies this address, and this port accepts no other credentials"
    world.server.wait_for_log(why)
    with world.client("") as peer:
        assert peer.ask(forward("db", [{"n": 1}], "local")) == {"ack": "local"}


def test_whoever_knows_the_key_may_publish_everything(start_server: StartServer, tmp_path: Path) -> None:
    world = World(start_server, tmp_path, True)
    with world.client(elsewhere.STRANGER) as peer:
        assert peer.shake_hands(KEY)[1]
        assert peer.ask(forward("db", [{"n": 1}], "c")) == {"ack": "c"}
        assert world.clients() == [("forward", "key")]
    with world.client(elsewhere.STRANGER) as peer:
        assert not peer.shake_hands(b"another key")[1]
        assert peer.answer() is None


def test_the_key_adds_nothing_to_what_an_address_may(start_server: StartServer, tmp_path: Path) -> None:
    world = World(start_server, tmp_path, True)
    with world.client(elsewhere.KNOWN_ADDRESS) as peer:
        assert peer.shake_hands(KEY)[1]
        assert world.clients() == [("lan", "address")]
        peer.send(forward("db", [{"n": 1}], "c"))
        assert peer.answer() is None


def test_whoever_does_not_show_the_key_in_time_goes(start_server: StartServer, tmp_path: Path) -> None:
    world = World(start_server, tmp_path, True, "--auth-timeout", "1")
    with world.client(elsewhere.STRANGER) as peer:
        word, _ = peer.answer()
        assert word == "HELO"
        assert peer.answer() is None
    wait_until(lambda: world.server.ask("STATS")["auth_failed"] == 1)
