"""AUTH on the ports that take lines and texts: how it is answered, and what happens to the lines after it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.harness import ROOT, elsewhere, identities
from tests.harness.changes import clients_from_elsewhere
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Json, Peer, event, events

WEB = {"publish": ["web.*", "audit"], "read": ["web.*"], "may": ["monitor"]}

UNKNOWN = {"status": "error", "code": "auth_failed", "detail": "unknown token"}
REQUIRED = {
    "status": "error",
    "code": "auth_required",
    "detail": "authenticate first: AUTH <token>, or a client certificate",
}


class Known:
    """A server that knows one token, and no anonymous clients."""

    def __init__(self, start_server: StartServer, folder: Path, *options: str, **stanza: object) -> None:
        self.token, made = identities.with_token("web", **{**WEB, **stanza})
        path = identities.write(folder / "identities.toml", made)
        self.server: ServerProcess = start_server(
            "--identities", str(path), "--anonymous", "none", *options, changes=[clients_from_elsewhere]
        )

    def says(self, data: bytes, source: str = "") -> list[Json]:
        with Peer(self.server.port, source=source) as peer:
            peer.send(data)
            peer.half_close()
            return peer.rest()

    @property
    def auth(self) -> bytes:
        return identities.auth(self.token)


@pytest.fixture
def known(start_server: StartServer, tmp_path: Path) -> Known:
    return Known(start_server, tmp_path, connections=2)


def test_the_replies_are_those_of_the_readme(known: Known) -> None:
    (text,) = re.findall(r"^```json\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    found = [
        known.says(known.auth),
        known.says(b"AUTH agg_nobody\n"),
        known.says(known.auth, elsewhere.STRANGER),
        known.says(b"PING\n"),
    ]
    with Peer(known.server.port) as one, Peer(known.server.port) as two:
        one.ask(known.auth)
        two.ask(known.auth)
        found.append(known.says(known.auth))
    encoded = [line.replace('"50 ', '"2 ') for line in text.splitlines()]

    assert [_encode(reply) for (reply,) in found] == encoded


def _encode(reply: Json) -> str:
    return json.dumps(reply, separators=(",", ":"))


def test_lines_are_counted_from_the_first_of_the_connection(known: Known) -> None:
    replies = known.says(b"\n" + known.auth + b"\n" + event("e", "db") + b"KILL 1\n")

    assert [reply.get("line") for reply in replies] == [None, 4, 5]
    assert [reply.get("code") for reply in replies] == [None, "not_allowed", "not_allowed"]
    assert replies[1]["topic"] == "db"
    assert replies[1]["detail"] == "web may not publish to this topic"
    assert replies[2]["detail"] == "web may not use KILL"


@pytest.mark.parametrize("piece", [1, 7, 61, 62, 1 << 20])
def test_auth_arrives_in_any_pieces(known: Known, piece: int) -> None:
    data = known.auth + b"".join(events("e", 3, "audit")) + b"QUIT\n"
    with Peer(known.server.port) as peer:
        for start in range(0, len(data), piece):
            peer.send(data[start : start + piece])
        replies = peer.rest()

    assert [reply["status"] for reply in replies] == ["ok", "stored", "stored", "stored", "ok"]


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"AUTH x\nPING\n", UNKNOWN),
        (b"AUTH\n", {**UNKNOWN, "detail": "a token is missing; usage: AUTH <token>"}),
        (b"AUTH " + b"x" * 5000, UNKNOWN),
        (b"PING\nAUTH x\n", REQUIRED),
        (b"x" * 100_000, REQUIRED),
        (b"\n" * 2000, REQUIRED),
        (b"GET / HTTP/1.1\r\n\r\n", REQUIRED),
        (b"\x16\x03\x01\x02\x00\x01", REQUIRED),
        (event("e"), REQUIRED),
        (b"QUIT", REQUIRED),
    ],
)
def test_whoever_is_not_known_gets_one_reply_and_the_end(known: Known, data: bytes, reply: Json) -> None:
    with Peer(known.server.port) as peer:
        peer.send(data)
        if b"\n" not in data and len(data) < 1024:
            peer.half_close()
        assert peer.rest() == [reply]
    assert known.server.ask("PING") == REQUIRED, "all is as before"


def test_whoever_says_nothing_is_told_nothing(known: Known) -> None:
    assert known.says(b"") == []


def test_a_second_auth_is_a_bad_command(known: Known) -> None:
    replies = known.says(known.auth + known.auth + b"PING\n")

    assert [reply.get("code") for reply in replies] == [None, "bad_command", None]
    assert known.token not in known.server.log


def test_whoever_is_known_already_may_be_somebody_else_by_a_token(known: Known) -> None:
    (reply, whoami) = known.says(known.auth + b"WHOAMI\n", elsewhere.SUPERUSER)

    assert reply["identity"] == whoami["identity"] == "web"
    assert whoami["by"] == "token"
    assert known.says(b"AUTH x\n", elsewhere.SUPERUSER) == [UNKNOWN]
    assert known.says(b"WHOAMI\nAUTH x\n", elsewhere.SUPERUSER)[1]["code"] == "bad_command"


def test_the_silent_port_takes_auth_and_answers_nothing(known: Known) -> None:
    data = known.auth + event("a", "web.a") + event("b", "db") + b"PING\n" + event("c", "audit")
    with Peer(known.server.silent_port) as peer:
        peer.send(data)
        peer.half_close()
        assert peer.raw_rest() == b""
    with Peer(known.server.silent_port) as peer:
        peer.send(event("stranger", "web.a"))
        assert peer.raw_rest() == b""
    wait_until(lambda: known.says(known.auth + b"STATS\n")[1]["unique_processed"] == 2)
    (_, listed, stats) = known.says(known.auth + b"EVENTS *\nSTATS\n")

    assert [one["event_id"] for one in listed["events"]] == ["a"]
    assert stats["unique_processed"] == 2
    assert stats["rejected_by_code"] == {"not_allowed": 2}
    known.server.wait_for_log("silent port: rejected line 3 of")
    wait_until(lambda: re.search(r"silent port: \S+ was turned away: authenticate first", known.server.log))


def test_the_wrap_port_takes_auth_and_checks_the_topics(start_server: StartServer, tmp_path: Path) -> None:
    known = Known(start_server, tmp_path, "--wrap-port", "0", "--wrap-topic", "{app|audit}")
    with Peer(known.server.wrap_port) as peer:
        peer.send(known.auth + b'plain text\n{"app":"web.a"}\n{"app":"db"}\n')
        peer.half_close()
        assert peer.raw_rest() == b""
    with Peer(known.server.wrap_port) as peer:
        peer.send(b"a stranger\n")
        assert peer.raw_rest() == b""
    wait_until(lambda: known.says(known.auth + b"STATS\n")[1]["unique_processed"] == 2)
    (_, stats, *listed) = known.says(known.auth + b"STATS\nTOPICS\n")

    assert stats["rejected_by_code"] == {"not_allowed": 1}
    assert [topic["topic"] for topic in listed[0]["topics"]] == ["web.a"]
    known.server.wait_for_log("wrap port: rejected line 3 of")


def test_a_text_that_begins_like_auth_is_text(start_server: StartServer) -> None:
    server = start_server("--wrap-port", "0")
    for text in (b"AUTH failed for root\n", b"AUT", b"AUTH agg_x\n", b"AUTH " + b"x" * 2000 + b"\n"):
        with Peer(server.wrap_port) as peer:
            peer.send(text)
            peer.half_close()
            assert peer.raw_rest() == b""
    wait_until(lambda: server.ask("STATS")["unique_processed"] == 4)
    texts = {one["payload"]["message"] for one in server.listed("app")}

    assert texts == {"AUTH failed for root", "AUT", "AUTH agg_x", "AUTH " + "x" * 2000}


@pytest.mark.parametrize("line", ["AUTH {} ", " auth\t{}\r", "\n Auth  {}\t", "AUTH {} and more", "auth {}"])
def test_no_token_is_stored_on_the_wrap_port(start_server: StartServer, tmp_path: Path, line: str) -> None:
    known = Known(start_server, tmp_path, "--wrap-port", "0", publish=["*"], read=["*"])
    for source in ("", elsewhere.SUPERUSER):
        with Peer(known.server.wrap_port, source=source) as peer:
            peer.send(f"{line.format(known.token)}\na text\n".encode())
            peer.half_close()
            assert peer.raw_rest() == b""
    served = 0 if "more" in line else 2
    wait_until(lambda: known.says(known.auth + b"STATS\n")[1]["unique_processed"] == served)
    wait_until(lambda: known.says(known.auth + b"STATS\n")[1]["connections"] == 1)
    (_, listed) = known.says(known.auth + b"EVENTS *\n")

    assert [one["payload"]["message"] for one in listed["events"]] == ["a text"] * served
    assert known.token not in known.server.log


def test_a_batch_has_a_reply_for_each_member(known: Known) -> None:
    members = b",".join(event(name, topic).strip() for name, topic in [("a", "audit"), ("b", "db"), ("c", "web.c")])
    (_, batch) = known.says(known.auth + b"[" + members + b"]\n")

    assert [one["status"] for one in batch["results"]] == ["stored", "rejected", "stored"]
    assert batch["results"][1]["code"] == "not_allowed"
    assert batch["results"][1]["event_id"] == "b"


def test_neighbours_of_what_may_not_be_published_are_stored(known: Known) -> None:
    lines = [event(f"e{number}", "db" if number % 7 == 3 else "audit") for number in range(500)]
    (_, *replies) = known.says(known.auth + b"".join(lines))

    assert [reply["event_id"] for reply in replies] == [f"e{number}" for number in range(500)]
    for number, reply in enumerate(replies):
        assert reply["status"] == ("rejected" if number % 7 == 3 else "stored")
        assert reply.get("line", number + 2) == number + 2


def test_a_longest_line_of_its_own(start_server: StartServer, tmp_path: Path) -> None:
    known = Known(start_server, tmp_path, max_line_bytes=300)
    (_, *replies) = known.says(known.auth + event("a", "audit", '{"x":"' + "x" * 300 + '"}') + event("b", "audit"))

    assert [reply.get("code") for reply in replies] == ["too_long", None]
    assert "300" in replies[0]["detail"]


def test_the_places_of_an_identity(known: Known) -> None:
    with Peer(known.server.port) as one, Peer(known.server.port) as two:
        one.ask(known.auth)
        two.ask(known.auth)
        (busy,) = known.says(known.auth + event("e", "audit"))
        assert busy["code"] == "busy"
    wait_until(lambda: "code" not in known.says(known.auth)[0])


def test_clients_and_kill(start_server: StartServer, tmp_path: Path) -> None:
    known = Known(start_server, tmp_path, may=["admin"])
    with Peer(known.server.port) as admin, Peer(known.server.port) as victim, Peer(known.server.port) as stranger:
        admin.ask(known.auth)
        victim.ask(known.auth)
        victim.send(b"".join(events("e", 1000, "audit")) + b"SUBSCRIBE web.*\n")
        assert [reply["status"] for reply in victim.replies(1002)] == ["stored"] * 1000 + ["ok", "caught_up"]
        wait_until(lambda: admin.ask(b"CLIENTS\n")["total"] == 3)
        listed = admin.ask(b"CLIENTS\n")
        assert [(one["id"], one["identity"], one["by"]) for one in listed["clients"]] == [
            (1, "web", "token"),
            (2, "web", "token"),
            (3, None, None),
        ]
        assert [one["id"] for one in admin.ask(b"CLIENTS 1 AFTER 1\n")["clients"]] == [2]
        assert admin.ask(b"KILL 2\n") == {"status": "ok", "id": 2, "killed": True}
        said = {"status": "error", "code": "killed", "detail": "an administrator has ended this connection"}
        assert [{name: one[name] for name in said} for one in victim.rest()] == [said] * 2, (
            "of its subscription, and of itself"
        )
        assert admin.ask(b"KILL 3\n")["killed"]
        assert stranger.rest() == []
        assert not admin.ask(b"KILL 99\n")["killed"]
        assert admin.ask(b"KILL\n")["code"] == "bad_command"
        assert admin.ask(b"KILL web\n")["code"] == "bad_command"
        wait_until(lambda: admin.ask(b"CLIENTS\n")["total"] == 1)


def test_whoever_kills_its_own_connection_is_ended_too(start_server: StartServer, tmp_path: Path) -> None:
    known = Known(start_server, tmp_path, may=["admin"])
    with Peer(known.server.port) as peer:
        peer.ask(known.auth)
        peer.send(b"KILL 1\n")
        assert [reply.get("code") for reply in peer.rest()] == [None, "killed"]


def test_a_command_that_waits_is_ended_by_kill(start_server: StartServer, tmp_path: Path) -> None:
    known = Known(start_server, tmp_path, may=["admin"])
    with Peer(known.server.port) as admin, Peer(known.server.port) as waiting:
        admin.ask(known.auth)
        waiting.ask(known.auth)
        waiting.send(b"EVENTS web.a AFTER 0 WAIT 60\nPING\n")
        wait_until(lambda: admin.ask(b"CLIENTS\n")["clients"][1]["unanswered"] == 2)
        admin.ask(b"KILL 2\n")
        assert [reply["code"] for reply in waiting.rest()] == ["killed"] * 3
