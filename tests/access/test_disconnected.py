"""Clients that are removed or killed: what was read is stored, what arrives later is not, on ports of every kind."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.harness import changes, elsewhere, identities
from tests.harness.forward import forward
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Json, Peer, event

PORTS = ["acked", "silent", "wrap", "forward"]

WAYS = {"removed": "the credentials of web are no longer valid", "killed": "an administrator has ended this connection"}


class World:
    """A server, and a client of one of its ports, known by its address."""

    def __init__(
        self, start_server: StartServer, folder: Path, port: str, *made: changes.Change, **limits: float
    ) -> None:
        if port == "forward":
            pytest.importorskip("msgpack", reason="the Forward port needs the extra forward")
        self.path = folder / "identities.toml"
        self.stanza: dict[str, Any] = {"name": "web", "address": ["10.1.0.0/24"], "publish": ["*"], **limits}
        self._write(self.stanza)
        more = ("--forward-port", "0") if port == "forward" else ()
        self.server: ServerProcess = start_server(
            "--identities", str(self.path), "--anonymous", "none", "--wrap-port", "0", *more,
            changes=[changes.clients_from_elsewhere, *made],
        )  # fmt: skip
        self.port = port

    def _write(self, *stanzas: dict[str, Any]) -> None:
        other = {"name": "other", "uid": [4711]}
        identities.write(self.path, other, *stanzas)

    def client(self) -> Peer:
        number = self.server.port if self.port == "acked" else self.server.port_of(self.port)
        return Peer(number, source=elsewhere.KNOWN_ADDRESS)

    def admin(self) -> Peer:
        return Peer(self.server.port, source=elsewhere.SUPERUSER)

    def says(self, name: str) -> bytes:
        """One event in the form that this port takes."""
        if self.port == "wrap":
            return f"{name}\n".encode()
        return forward("t", [{"id": name}]) if self.port == "forward" else event(name)

    def end(self, way: str, admin: Peer) -> None:
        """End the client, and wait until it has been disconnected."""
        if way == "removed":
            self._write()
            self.server.signal(signal.SIGHUP)
        else:
            (found,) = [one["id"] for one in admin.ask(b"CLIENTS\n")["clients"] if one["identity"] == "web"]
            assert admin.ask(f"KILL {found}\n".encode())["killed"]
        self.server.wait_for_log(f"disconnected: {WAYS[way]}")


def stored(admin: Peer) -> int:
    return int(admin.ask(b"STATS\n")["unique_processed"])


def is_alone(admin: Peer) -> bool:
    return bool(admin.ask(b"CLIENTS\n")["total"] == 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("port", PORTS)
def test_what_arrives_later_is_dropped_and_named_in_the_log(
    start_server: StartServer, tmp_path: Path, port: str, way: str
) -> None:
    world = World(start_server, tmp_path, port, changes.patient)
    with world.admin() as admin, world.client() as client:
        client.send(b"".join(world.says(f"e{number}") for number in range(100)))
        wait_until(lambda: stored(admin) == 100)
        world.end(way, admin)
        late = b"".join(world.says(f"late{number}") for number in range(100))
        client.send(late)
        client.half_close()
        said = client.raw_rest() if port != "silent" else b""
        wait_until(lambda: is_alone(admin))
        assert stored(admin) == 100
        assert admin.ask(b"STATS\n")["skipped_bytes"] == len(late)
    dropped = rf"{port} port: \S+ dropped {len(late)} bytes that arrived after it was disconnected"
    wait_until(lambda: re.search(dropped, world.server.log))
    replies: list[Json] = [json.loads(line) for line in said.splitlines()]
    last = {"status": "error", "code": "auth_failed" if way == "removed" else "killed", "detail": WAYS[way]}
    assert replies[100:] == ([last] if port == "acked" else [])


@pytest.mark.parametrize("port", PORTS)
def test_nobody_can_put_off_its_end(start_server: StartServer, tmp_path: Path, port: str) -> None:
    world = World(start_server, tmp_path, port, events_per_s=50)
    with world.admin() as admin, world.client() as client:
        client.send(world.says("first"))
        wait_until(lambda: stored(admin) == 1)
        world.end("removed", admin)
        before = stored(admin)
        with contextlib.suppress(OSError):
            for number in range(1000):
                client.send(world.says(f"late{number}"))
        wait_until(lambda: is_alone(admin))
        assert stored(admin) == before


def test_a_text_without_an_end_is_kept(start_server: StartServer, tmp_path: Path) -> None:
    world = World(start_server, tmp_path, "wrap")
    with world.admin() as admin, world.client() as client:
        client.send(b"one\ntwo\nthree")
        wait_until(lambda: stored(admin) == 2)
        world.end("killed", admin)
        wait_until(lambda: stored(admin) == 3)
