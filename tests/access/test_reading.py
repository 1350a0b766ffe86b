"""Topics that a client may not read do not exist for it, by any way in which it could learn of them."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness import identities
from tests.harness.changes import dict_engine, patient_with_answers, small_slices
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Json, Peer, event, events


class World:
    """A server; ``web`` reads web.*, ``db`` reads db.*, ``root`` reads everything."""

    def __init__(self, start_server: StartServer, folder: Path, **settings: Any) -> None:
        made = {
            "web": identities.with_token("web", publish=["web.*"], read=["web.*"]),
            "db": identities.with_token("db", publish=["db.*"], read=["db.*"]),
            "part": identities.with_token("part", read=["web.a.*", "audit"]),
            "root": identities.with_token("root", publish=["*"], read=["*"], may=["monitor"]),
        }
        self.tokens = {name: token for name, (token, _) in made.items()}
        self.stanzas = {name: stanza for name, (_, stanza) in made.items()}
        self.path = path = identities.write(folder / "identities.toml", *self.stanzas.values())
        self.server: ServerProcess = start_server(
            "--identities", str(path), "--anonymous", "none", "--db", str(folder / "events.db"), **settings
        )

    def client(self, name: str) -> Peer:
        peer = Peer(self.server.port)
        assert peer.ask(identities.auth(self.tokens[name]))["identity"] == name
        return peer

    def let_read(self, name: str, *globs: str) -> None:
        """Let ``name`` read these topics from now on."""
        self.stanzas[name]["read"] = globs
        identities.write(self.path, *self.stanzas.values())
        seen = self.server.log.count("reloaded")
        self.server.signal(signal.SIGHUP)
        wait_until(lambda: self.server.log.count("reloaded") > seen)

    def publish(self, *lines: bytes) -> None:
        with self.client("root") as peer:
            peer.send(b"".join(lines))
            assert {reply["status"] for reply in peer.replies(len(lines))} <= {"stored", "duplicate"}


@pytest.fixture(params=["sqlite", "dict"])
def world(request: pytest.FixtureRequest, start_server: StartServer, tmp_path: Path) -> World:
    return World(
        start_server, tmp_path, changes=[patient_with_answers, dict_engine if request.param == "dict" else small_slices]
    )


def ids(reply: Json) -> list[str]:
    return [one["event_id"] for one in reply["events"]]


def test_events_and_topics(world: World) -> None:
    mixed = [event(f"e{number}", ["web.a", "db.a", "audit"][number % 3]) for number in range(60)]
    world.publish(*mixed)
    with world.client("web") as web:
        expected = [f"e{number}" for number in range(60) if number % 3 == 0]
        for patterns in ("*", "web.*", "web.a db.a", "web.a audit db.*", "[wd]*"):
            assert ids(web.ask(f"EVENTS {patterns} 100 AFTER 0\n".encode())) == expected
            assert ids(web.ask(f"EVENTS {patterns} 100\n".encode())) == expected[::-1]
        for patterns in ("db.a", "audit", "db.*", "audit db.a", "nothing"):
            assert ids(web.ask(f"EVENTS {patterns} 100 AFTER 0\n".encode())) == []
            assert ids(web.ask(f"EVENTS {patterns} 100\n".encode())) == []
        assert ids(web.ask(b"EVENTS * 100 CONTAINS db.a\n")) == []
        assert web.ask(b"EVENT db.a e1\n") == web.ask(b"EVENT db.a nothing\n") == {"status": "ok", "event": None}
        assert web.ask(b"EVENT web.a e0\n")["event"]["event_id"] == "e0"
        topics = web.ask(b"TOPICS\n")
        assert (topics["total"], [one["topic"] for one in topics["topics"]]) == (1, ["web.a"])


def test_pages_of_topics(world: World) -> None:
    world.publish(*(event("e", f"{kind}.{number:02}") for number in range(25) for kind in ("web", "db", "x")))
    with world.client("web") as web:
        listed: list[str] = []
        while page := web.ask(f"TOPICS 10 AFTER '{listed[-1] if listed else ''}'\n".encode())["topics"]:
            listed += [one["topic"] for one in page]
        assert listed == [f"web.{number:02}" for number in range(25)]
        assert web.ask(b"TOPICS 1\n")["total"] == 25


@pytest.mark.parametrize("patterns", ["*", "web.a db.a", "[dw]*", "* AFTER 0", "web.a db.a audit AFTER 0"])
def test_a_subscription_backlog_and_live(world: World, patterns: str) -> None:
    world.publish(*events("old", 30, "db.a"), *events("old", 30, "web.a"))
    with world.client("web") as web:
        web.ask(f"SUBSCRIBE {patterns}\n".encode())
        delivered = []
        while (line := web.reply())["status"] != "caught_up":
            delivered.append(line["event"])
        world.publish(*events("new", 20, "db.a"), *events("new", 20, "audit"), *events("new", 20, "web.a"))
        while len(delivered) < (50 if "AFTER" in patterns else 20):
            delivered.append(web.reply()["event"])
        assert {one["topic"] for one in delivered} == {"web.a"}


def test_two_readers_with_the_same_patterns_get_each_their_own(world: World) -> None:
    with world.client("web") as web, world.client("db") as db:
        for peer in (web, db):
            peer.ask(b"SUBSCRIBE *\n")
            assert peer.reply()["status"] == "caught_up"
        world.publish(*events("e", 10, "db.a"), *events("e", 10, "web.a"))
        for peer, topic in ((web, "web.a"), (db, "db.a")):
            assert [peer.reply()["event"]["topic"] for _ in range(10)] == [topic] * 10


def test_no_wait_ends_because_of_a_topic_that_may_not_be_read(world: World) -> None:
    with world.client("web") as web:
        answers: list[tuple[Json, float]] = []
        started = time.monotonic()
        web.send(b"EVENTS * AFTER 0 WAIT 2\n")
        reader = threading.Thread(target=lambda: answers.append((web.reply(), time.monotonic())))
        reader.start()
        for number in range(10):
            world.publish(event(f"e{number}", "db.a"))
        reader.join()
        ((answer, at),) = answers
        assert at - started >= 2
        assert answer["events"] == []


def test_who_reads_is_seen_by_those_who_may_read_as_much(world: World) -> None:
    with (
        world.client("web") as web,
        world.client("db") as db,
        world.client("root") as root,
        world.client("part") as part,
    ):
        web.ask(b"SUBSCRIBE * AS web-all\n")
        part.ask(b"SUBSCRIBE web.a.* AS part-a\n")
        db.ask(b"SUBSCRIBE db.a AS db-a\n")
        root.ask(b"SUBSCRIBE db.a web.a AS both\n")
        for peer in (web, part, db, root):
            assert peer.reply()["status"] == "caught_up"
        seen = {}
        for name, peer in (("web", web), ("part", part), ("db", db), ("root", root)):
            cursors, subscribers = peer.ask(b"CURSORS\n"), peer.ask(b"SUBSCRIBERS\n")
            seen[name] = [one["name"] for one in cursors["cursors"]]
            assert sorted(one["name"] for one in subscribers["subscribers"]) == seen[name]
            assert cursors["total"] == subscribers["total"] == len(seen[name])
        assert seen == {
            "web": ["part-a", "web-all"],
            "part": ["part-a"],
            "db": ["db-a"],
            "root": ["both", "db-a", "part-a", "web-all"],
        }


def test_nobody_moves_or_removes_the_name_of_one_who_may_read_more(world: World) -> None:
    with world.client("db") as db, world.client("web") as web:
        db.ask(b"SUBSCRIBE db.* AS mine\n")
        assert db.reply()["status"] == "caught_up"
        for patterns in ("db.*", "*", "web.*"):
            refused = web.ask(f"SUBSCRIBE {patterns} AS mine\n".encode())
            assert refused["code"] == "bad_command"
            assert "db" not in refused["detail"]
        assert web.ask(b"FORGET mine\n") == {"status": "ok", "name": "mine", "forgotten": False}
        assert web.ask(b"FORGET mine\n") == {**web.ask(b"FORGET nothing\n"), "name": "mine"}
        world.publish(event("e", "db.a"))
        seq = db.reply()["event"]["seq"]
        assert db.ask(f"ACK {seq}\n".encode())["status"] == "ok"


def test_a_name_outlives_other_permissions_of_its_reader(world: World) -> None:
    with world.client("web") as web:
        web.ask(b"SUBSCRIBE * AS mine\n")
        assert web.reply()["status"] == "caught_up"
    world.publish(event("e", "web.a"), event("e", "db.a"))
    with world.client("root") as root:
        assert root.ask(b"SUBSCRIBE * AS mine\n")["status"] == "ok", "whoever may read more may go on"
        assert [root.reply()["event"]["topic"] for _ in range(2)] == ["web.a", "db.a"]
    with world.client("web") as web:
        assert web.ask(b"SUBSCRIBE * AS mine\n")["status"] == "ok", "until it acks, the name is as it was"
        assert web.reply()["event"]["topic"] == "web.a"


def test_a_reader_that_may_read_less_keeps_its_name(world: World) -> None:
    with world.client("part") as part, world.client("web") as web:
        part.ask(b"SUBSCRIBE * AFTER 0 AS billing\n")
        assert part.reply()["status"] == "caught_up"
        world.publish(event("a1", "audit"), event("w1", "web.a.x"))
        part.ask(f"ACK {part.reply()['event']['seq']}\n".encode())
        world.let_read("part", "web.a.*")
        assert part.rest()[-1]["code"] == "shutting_down"
        web.ask(b"PING\n")

        with world.client("part") as again:
            assert [one["name"] for one in again.ask(b"CURSORS\n")["cursors"]] == ["billing"]
            assert web.ask(b"CURSORS\n")["total"] == 0, "it could read audit when it acked last"
            assert "belongs to another identity" in web.ask(b"SUBSCRIBE * AS billing\n")["detail"]
            assert "created with other patterns" in again.ask(b"SUBSCRIBE web.* AS billing\n")["detail"]
            assert again.ask(b"SUBSCRIBE * AS billing\n")["status"] == "ok"
            line = again.reply()["event"]
            assert line["event_id"] == "w1", "it goes on behind what it has acked"
            assert again.reply()["status"] == "caught_up"
            again.ask(f"ACK {line['seq']}\n".encode())
            assert web.ask(b"CURSORS\n")["total"] == 1, "which is told by what it may read now"
        world.let_read("part", "nothing")
        with world.client("part") as again:
            assert again.ask(b"FORGET billing\n")["forgotten"]
            assert again.ask(b"SUBSCRIBE * AS billing\n")["status"] == "ok"


def test_a_name_stays_its_owners_whoever_else_has_read_under_it(world: World) -> None:
    world.publish(event("w", "web.a"), event("d", "db.a"))
    with world.client("web") as web, world.client("root") as root:
        web.ask(b"SUBSCRIBE * AFTER 0 AS mine\n")
        root.ask(b"SUBSCRIBE * AS mine\n")
        root.ask(f"ACK {root.reply()['event']['seq']}\n".encode())
    with world.client("web") as web:
        assert web.ask(b"SUBSCRIBE * AS mine\n")["status"] == "ok"


def test_names_that_were_made_before_there_were_owners(start_server: StartServer, tmp_path: Path) -> None:
    """A reader that may read everything that a name is for may use the name, and owns it from then on."""
    world = World(start_server, tmp_path)
    assert world.server.stop() == 0
    with sqlite3.connect(tmp_path / "events.db") as database:
        database.executemany(
            "INSERT INTO cursors VALUES (?, ?, 0, 0)",
            [("old", '{"patterns":["*"],"readable":["web.*"]}'), ("foreign", '{"patterns":["*"]}')],
        )
    database.close()
    world.server.restart()
    world.publish(event("w", "web.a"))
    with world.client("web") as web:
        assert "belongs to another identity" in web.ask(b"SUBSCRIBE * AS foreign\n")["detail"]
        assert web.ask(b"SUBSCRIBE * AS old\n")["status"] == "ok"
        web.ask(f"ACK {web.reply()['event']['seq']}\n".encode())
    world.let_read("web", "web.a")
    with world.client("web") as web:
        assert web.ask(b"SUBSCRIBE * AS old\n")["status"] == "ok"


def test_whoever_reads_nothing_is_told_so(start_server: StartServer, tmp_path: Path) -> None:
    token, stanza = identities.with_token("sender", publish=["*"])
    path = identities.write(tmp_path / "identities.toml", stanza)
    server = start_server("--identities", str(path), "--anonymous", "none")
    with Peer(server.port) as peer:
        peer.ask(identities.auth(token))
        for command in ("EVENTS t", "EVENT t e", "TOPICS", "SUBSCRIBE t", "UNSUBSCRIBE", "ACK 1", "SUBSCRIBERS",
                        "CURSORS", "FORGET x"):  # fmt: skip
            reply = peer.ask(command.encode() + b"\n")
            assert (reply["code"], reply["detail"]) == ("not_allowed", f"sender may not use {command.split()[0]}")
