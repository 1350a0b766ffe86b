"""The tables of permissions in README.md, checked against a server cell by cell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT, elsewhere, identities
from tests.harness.changes import clients_from_elsewhere
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Json, Peer, event

README = (ROOT / "README.md").read_text()
(TABLE,) = re.findall(r"^<!-- permissions -->\n(.*?)^<!-- /permissions -->", README, re.MULTILINE | re.DOTALL)
HEAD, _, *ROWS = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in TABLE.splitlines()]
WHO = [cell.strip("`") for cell in HEAD[1:]]
CELLS = [
    (what, who, cell)
    for row in ROWS
    for what in re.findall(r"`([^`]*)`", row[0])
    for who, cell in zip(WHO, row[1:], strict=True)
]
PERMISSIONS = {
    "publish": {"publish": ["web.*"]},
    "read": {"read": ["web.*"]},
    "monitor": {"may": ["monitor"]},
    "admin": {"may": ["admin"]},
}

AS_IF_IT_DID_NOT_EXIST = {
    "EVENTS db.a": {"status": "ok", "topic": "db.a", "events": []},
    "EVENT db.a e": {"status": "ok", "event": None},
    "SUBSCRIBE db.a": {"status": "caught_up"},
    "FORGET db": {"status": "ok", "name": "db", "forgotten": False},
}


class World:
    """A server, one identity for each permission, and two topics, each with an event and a reader's name."""

    def __init__(self, server: ServerProcess, tokens: dict[str, str]) -> None:
        self.server = server
        self.tokens = tokens
        with self.client("anonymous") as peer:
            for topic in ("web.a", "db.a"):
                peer.ask(event("e", topic))

    def name_cursors(self) -> None:
        with self.client("anonymous") as peer:
            for name in ("web", "db"):
                peer.ask(f"SUBSCRIBE {name}.a AS {name}\n".encode())
                assert peer.reply()["status"] == "caught_up"
                peer.ask(b"UNSUBSCRIBE\n")

    def client(self, who: str) -> Peer:
        peer = Peer(self.server.port, source=elsewhere.STRANGER_TLS if who in ("nobody", *PERMISSIONS) else "")
        if token := self.tokens.get(who):
            assert peer.ask(identities.auth(token))["identity"] == who
        return peer

    def does(self, who: str, what: str) -> Json:
        """The reply to a command, or to an event to a topic. If it is a SUBSCRIBE that succeeds: the line after that.

        A subscription begins at the oldest event, so that this line is an event if there is one that may be read.
        """
        start = " AFTER 0" if _subscribes(what) else ""
        with self.client(who) as peer:
            peer.send(f"{what}{start}\n".encode() if what[0].isupper() else event("e", what))
            peer.half_close()
            reply = peer.reply()
            return peer.reply() if _subscribes(what) and reply["status"] == "ok" else reply


def _subscribes(what: str) -> bool:
    return what.startswith("SUBSCRIBE ")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("matrix")
    made = {name: identities.with_token(name, **permissions) for name, permissions in PERMISSIONS.items()}
    path = identities.write(folder / "identities.toml", *(stanza for _, stanza in made.values()))
    server = ServerProcess(folder, "--identities", str(path), changes=[clients_from_elsewhere])
    try:
        yield World(server.start(), {name: token for name, (token, _) in made.items()})
    finally:
        server.end()


def test_the_table_has_every_command(world: World) -> None:
    with world.client("anonymous") as peer:
        known = {usage.split()[0] for usage in peer.ask(b"HELP\n")["commands"]}

    assert {what.split()[0] for what, _, _ in CELLS if what[:1].isupper()} == known - {"AUTH", "UNSUBSCRIBE", "ACK"}


@pytest.mark.parametrize(("what", "who", "cell"), CELLS, ids=[f"{what}: {who}" for what, who, _ in CELLS])
def test_a_cell(world: World, what: str, who: str, cell: str) -> None:
    world.name_cursors()
    reply = world.does(who, what)

    if cell == "as if it did not exist":
        assert {name: value for name, value in reply.items() if name != "seq"} == AS_IF_IT_DID_NOT_EXIST[what]
    elif cell == "yes":
        assert reply["status"] == ("duplicate" if what[0].islower() else "event" if _subscribes(what) else "ok")
        assert reply.get("events") != []
        assert reply.get("event", reply) is not None
        assert reply.get("forgotten") is not False
    else:
        assert cell == "no"
        code = "auth_required" if who == "nobody" else "not_allowed"
        assert (reply["status"], reply["code"]) == ("error" if who == "nobody" else "rejected", code)


# --- which identity a client has


def rules(tmp_path: Path) -> tuple[str, Path]:
    token, stanza = identities.with_token(
        "web", publish=["*"], read=["*"], may=["monitor"], cert=["DNS:web-1"], address=["10.1.0.0/24"], uid=[1001]
    )
    return token, identities.write(tmp_path / "identities.toml", stanza)


WHO_IS_WHO = {
    "on this machine, without credentials": ["", elsewhere.OTHER_USER],
    "on another machine, without credentials": [elsewhere.STRANGER, elsewhere.STRANGER_TLS],
    "with an unknown certificate": [elsewhere.FOREIGN_CERTIFICATE],
    "with a known certificate": [elsewhere.CERTIFICATE],
    "with a known address": [elsewhere.KNOWN_ADDRESS],
    "with a known user": [elsewhere.KNOWN_USER],
    "the superuser or the server's own user, on a unix socket": [elsewhere.SUPERUSER],
    "with a known token, over TLS, loopback or a unix socket": [
        "", elsewhere.STRANGER_TLS, elsewhere.KNOWN_USER, elsewhere.FOREIGN_CERTIFICATE,
    ],
    "with a known token, over a plain connection from another machine": [elsewhere.STRANGER, elsewhere.KNOWN_ADDRESS],
    "with any other token": ["", elsewhere.STRANGER_TLS, elsewhere.SUPERUSER],
}  # fmt: skip


@pytest.mark.parametrize("anonymous", ["loopback", "none", "all"])
def test_who_is_who(start_server: StartServer, tmp_path: Path, anonymous: str) -> None:
    token, path = rules(tmp_path)
    server = start_server("--identities", str(path), "--anonymous", anonymous, changes=[clients_from_elsewhere])
    shown = dict(re.findall(r"^\| ((?:on|with|the) [^|]*?) \| (.*) \|$", README, re.MULTILINE))
    column = ["loopback", "none", "all"].index(anonymous)
    for what, sources in WHO_IS_WHO.items():
        expected = shown[what].split(" | ")[column]
        for source in sources:
            with Peer(server.port, source=source) as peer:
                if "token" in what:
                    peer.send(identities.auth("agg_" + "a" * 52 if "other" in what else token))
                peer.send(b"WHOAMI\nEVENTS t\nKILL 1000000\n" + event("e"))
                peer.half_close()
                replies = peer.rest()
                assert _verdict(replies, is_token_shown="token" in what) == expected, (what, source, replies)


def _verdict(replies: list[Json], is_token_shown: bool) -> str:
    first = replies[0]
    if first["status"] == "error":
        assert len(replies) == 1
        assert first["code"] in ("auth_required", "auth_failed")
        return "turned away" if is_token_shown else "nobody"
    *_, whoami, read, kill, published = replies
    assert published["status"] in ("stored", "duplicate")
    name = whoami["identity"]
    if name == "administrator":
        assert (read["status"], kill["status"]) == ("ok", "ok")
    else:
        assert kill["code"] == "not_allowed"
    if name == "web":
        name = "its identity"
        if whoami["by"] == "address":
            assert read["code"] == "not_allowed"
            return "its identity, to publish"
    assert read["status"] == "ok"
    return str(name)
