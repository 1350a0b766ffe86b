"""Rules that are reloaded while the server runs."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness import elsewhere, identities
from tests.harness.background import in_background
from tests.harness.changes import Change, clients_from_elsewhere, patient
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Json, Peer, event, events

ALL = {"publish": ["*"], "read": ["*"], "may": ["monitor"]}


class World:
    """A server, and the file that it reloads."""

    def __init__(self, start_server: StartServer, folder: Path, *made: Change) -> None:
        self.path = folder / "identities.toml"
        self.tokens: dict[str, str] = {}
        self.stanzas: dict[str, dict[str, Any]] = {}
        for name in ("web", "other"):
            self.tokens[name], self.stanzas[name] = identities.with_token(name, **ALL)
        self.write()
        self.server: ServerProcess = start_server(
            "--identities", str(self.path), "--anonymous", "none", changes=[clients_from_elsewhere, *made]
        )

    def write(self) -> None:
        identities.write(self.path, *self.stanzas.values())

    def reload(self) -> None:
        """Let the server reload the file, and wait until it has."""
        self.write()
        seen = self.server.log.count("reloaded")
        self.server.signal(signal.SIGHUP)
        wait_until(lambda: self.server.log.count("reloaded") > seen)

    def client(self, name: str) -> Peer:
        peer = Peer(self.server.port)
        assert peer.ask(identities.auth(self.tokens[name]))["identity"] == name
        return peer


@pytest.fixture
def world(start_server: StartServer, tmp_path: Path) -> World:
    return World(start_server, tmp_path)


def test_whoever_is_known_no_more_is_ended_with_all_that_was_read_acked(
    start_server: StartServer, tmp_path: Path
) -> None:
    world = World(start_server, tmp_path, patient)
    with world.client("web") as web, world.client("other") as other:
        sent, stop = 0, threading.Event()

        def send() -> None:
            nonlocal sent
            try:
                while not stop.is_set():
                    web.send(b"".join(events(f"web-{sent}", 200)))
                    sent += 1
            except OSError:
                pass

        sender = threading.Thread(target=send)
        sender.start()
        replies = web.replies(2000)
        del world.stanzas["web"]
        world.reload()
        at = time.monotonic()
        rest: list[Json] = []
        with in_background(lambda: rest.extend(web.rest())):
            acks_of_other = [other.ask(event(f"other-{number}"))["status"] for number in range(200)]
        replies += rest
        took_s = time.monotonic() - at
        stop.set()
        sender.join()
        assert acks_of_other == ["stored"] * 200
        assert other.ask(b"STATS\n")["connections_total"] == 2

        acked = {reply["event_id"] for reply in replies if reply["status"] == "stored"}
        refused = [reply for reply in replies if reply["status"] == "error"]
        assert {reply["code"] for reply in refused} <= {"auth_failed"}
        assert len(acked) + len(refused) == len(replies)
        assert took_s < 20
        stored: set[str] = set()
        after = 0
        while page := other.ask(f"EVENTS t 1000 AFTER {after}\n".encode())["events"]:
            stored |= {one["event_id"] for one in page if one["event_id"].startswith("web")}
            after = page[-1]["seq"]
        assert stored == acked, "all that was stored is acked"
    world.server.wait_for_log("the credentials of web are no longer valid")


def test_a_token_that_is_replaced(world: World) -> None:
    old = world.tokens["web"]
    new, stanza = identities.with_token("web", **ALL)
    with world.client("web") as early:
        world.stanzas["web"]["token_sha256"] += stanza["token_sha256"]
        world.reload()
        assert early.ask(b"PING\n")["pong"]
        world.tokens["web"] = new
        with world.client("web") as late:
            world.stanzas["web"] = stanza
            world.reload()
            assert _codes(early) == ["auth_failed"]
            assert late.ask(b"PING\n")["pong"]
    with Peer(world.server.port) as peer:
        assert peer.ask(identities.auth(old))["code"] == "auth_failed"


def test_permissions_of_those_who_are_connected_change(world: World) -> None:
    with world.client("web") as web:
        assert web.ask(event("a", "db"))["status"] == "stored"
        world.stanzas["web"].update(publish=["web.*"], read=["web.*"], may=[])
        world.reload()
        assert web.ask(event("b", "db"))["code"] == "not_allowed"
        assert web.ask(b"EVENT db a\n")["event"] is None
        assert web.ask(b"STATS\n")["code"] == "not_allowed"
        world.stanzas["web"].update(ALL)
        world.reload()
        assert web.ask(event("b", "db"))["status"] == "stored"


@pytest.mark.parametrize("command", [b"SUBSCRIBE *\n", b"EVENTS * AFTER 0 WAIT 60\n"])
def test_whoever_reads_by_old_rules_has_to_connect_again(world: World, command: bytes) -> None:
    with world.client("web") as web, world.client("other") as other:
        web.send(command)
        if command.startswith(b"SUBSCRIBE"):
            assert [reply["status"] for reply in web.replies(2)] == ["ok", "caught_up"]
        else:
            wait_until(lambda: _unanswered(other) == {"web": 1, "other": 1})
        world.stanzas["web"]["read"] = ["web.*"]
        world.reload()
        assert other.ask(event("secret", "db"))["status"] == "stored"
        said = web.rest()
        assert [reply["code"] for reply in said] == ["shutting_down"]
    with world.client("web") as web:
        assert web.ask(b"EVENTS *\n")["events"] == []


def _codes(peer: Peer) -> list[str]:
    """The codes of all replies up to the end of the connection."""
    return [reply["code"] for reply in peer.rest()]


def _unanswered(peer: Peer) -> dict[str, int]:
    return {one["identity"]: one["unanswered"] for one in peer.ask(b"CLIENTS\n")["clients"]}


def test_a_reader_whose_permissions_stay_reads_on(world: World) -> None:
    with world.client("web") as web, world.client("other") as other:
        web.send(b"SUBSCRIBE *\n")
        web.replies(2)
        world.stanzas["web"].update(publish=[], events_per_s=5)
        del world.stanzas["other"]
        world.reload()
        assert _codes(other) == ["auth_failed"]
        with Peer(world.server.port, source=elsewhere.SUPERUSER) as root:
            root.ask(event("e"))
        assert web.reply()["event"]["event_id"] == "e"


@pytest.mark.parametrize("source", [elsewhere.CERTIFICATE, elsewhere.KNOWN_ADDRESS, elsewhere.KNOWN_USER])
def test_whoever_has_lost_its_rule_is_ended(world: World, source: str) -> None:
    world.stanzas["net"] = {
        "name": "net", "publish": ["*"], "cert": ["DNS:web-1"], "address": ["10.1.0.7"], "uid": [1001],
    }  # fmt: skip
    world.reload()
    with Peer(world.server.port, source=source) as peer, world.client("web") as web:
        assert peer.ask(b"WHOAMI\n")["identity"] == "net"
        world.stanzas["net"].update(cert=["DNS:x"], address=["10.1.0.8"], uid=[1002])
        world.reload()
        assert _codes(peer) == ["auth_failed"]
        assert web.ask(b"PING\n")["pong"]


def test_a_broken_file_changes_nothing(world: World) -> None:
    with world.client("web") as web:
        world.stanzas["web"]["uid"] = "all"
        world.write()
        world.server.signal(signal.SIGHUP)
        world.server.wait_for_log("not reloaded")
        assert web.ask(b"PING\n")["pong"]
    with world.client("web") as web:
        assert web.ask(b"PING\n")["pong"]
    assert 'identity "web": uid: expected a list, got a string' in world.server.log


def test_a_silent_sender_is_ended_too(world: World) -> None:
    with Peer(world.server.silent_port) as silent, world.client("other") as other:
        silent.send(identities.auth(world.tokens["web"]) + b"".join(events("e", 1000)))
        wait_until(lambda: other.ask(b"STATS\n")["unique_processed"] == 1000)
        del world.stanzas["web"]
        world.reload()
        assert silent.raw_rest() == b""
        wait_until(lambda: _total(other) == 1)


def _total(peer: Peer) -> Json:
    return peer.ask(b"CLIENTS\n")["total"]
