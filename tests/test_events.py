"""EVENTS over patterns: newest or oldest first, positions to resume from, answers that are cut short, and waiting."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aggregator.access.identity import ANONYMOUS
from aggregator.config import Config
from aggregator.event import Event
from aggregator.server import reading
from aggregator.server.feed import Feed
from aggregator.server.follower import Follower
from aggregator.server.intake import Intake
from aggregator.wire import replies
from tests.harness import changes
from tests.harness.background import in_background
from tests.harness.list_engine import ListEngine
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import WAITING
from tests.harness.wire import Json, Peer, event, events, exchange

pytestmark = pytest.mark.engines


def ids(answer: Json) -> list[str]:
    return [one["event_id"] for one in answer["events"]]


def seqs(answer: Json) -> list[int]:
    return [one["seq"] for one in answer["events"]]


@pytest.fixture
def filled(server: ServerProcess) -> ServerProcess:
    """Ten events: a.0, b, a.0, b, …"""
    exchange(server.port, b"".join(event(f"e{number}", "b" if number % 2 else "a.0") for number in range(1, 11)))
    return server


@pytest.mark.parametrize(
    ("arguments", "found", "seq"),
    [
        ("* 3", [10, 9, 8], 10),
        ("a.* 2", [10, 8], 10),
        ("b 2", [9, 7], 10),
        ("b a.0 3", [10, 9, 8], 10),
        ("nothing*", [], 10),
        ("* 3 BEFORE 6", [5, 4, 3], 10),
        ("b 10 BEFORE 6", [5, 3, 1], 10),
        ("* 5 BEFORE 1", [], 10),
        ("* 5 BEFORE 0", [], 10),
        ("* 3 AFTER 6", [7, 8, 9], 9),
        ("a.* 10 AFTER 6", [8, 10], 10),
        ("a.* 1 AFTER 6", [8], 8),
        ("* AFTER 10", [], 10),
        ("* 20 SINCE 1h", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 10),
        ("* SINCE NOW", [], 10),
        ("* 2 UNTIL NOW", [10, 9], 10),
        ("* AFTER 2 UNTIL 2001-01-01T00:00Z", [], 2),
        ("* BEFORE 5 UNTIL 2001-01-01T00:00Z", [], 10),
        ("* 2 BEFORE 5 UNTIL NOW", [4, 3], 10),
        ("* 20 SOURCE nobody", [], 10),
        ("* 20 AFTER 0 SOURCE nobody", [], 10),
        ("* 2 CONTAINS '\"e1\"'", [1], 10),
        ("* 1 AFTER 0 CONTAINS e1", [1], 1),
    ],
)
def test_what_is_asked_for(filled: ServerProcess, arguments: str, found: list[int], seq: int) -> None:
    """Oldest first, ``seq`` says how far the server has looked; newest first, it is the head."""
    answer = filled.ask(f"EVENTS {arguments}")

    assert (seqs(answer), answer["seq"]) == (found, seq)
    assert "truncated" not in answer


def test_one_name_is_a_topic_and_all_else_are_patterns(filled: ServerProcess) -> None:
    assert filled.ask("EVENTS b")["topic"] == "b"
    assert filled.ask("EVENTS b*")["patterns"] == ["b*"]
    assert filled.ask("EVENTS b a.0")["patterns"] == ["b", "a.0"]
    assert filled.ask("EVENTS 5")["topic"] == "5"


@pytest.mark.parametrize(
    ("arguments", "detail"),
    [
        ("", "a topic or pattern is missing"),
        ("a 0", "limit: expected a number from 1 to 1000, got '0'"),
        ("a 1001", "limit: expected a number from 1 to 1000"),
        ("a[ 5", "the set that opens at character 2 is not closed"),
        ("a AFTER 11", "after: 11 is past the newest, 10"),
        ("a BEFORE x", "before: expected a number"),
        ("a AFTER 1 BEFORE 2", "AFTER and BEFORE exclude each other"),
        ("a SINCE 1m BEFORE 2", "BEFORE and SINCE exclude each other"),
        ("a SINCE tomorrow", "since: expected NOW, a date and time, or an age like 10m, got 'tomorrow'"),
        ("a UNTIL 2999-01-01T00:00Z", "until: 2999-01-01T00:00Z is still to come"),
        ("a WAIT 5", "WAIT needs AFTER"),
        ("a AFTER 1 WAIT 61", "wait: expected a number from 0 to 60"),
    ],
)
def test_what_is_refused(filled: ServerProcess, arguments: str, detail: str) -> None:
    answer = filled.ask(f"EVENTS {arguments}")

    assert (answer["status"], answer["code"]) == ("rejected", "bad_command")
    assert detail in answer["detail"]


# --- answers that are cut short


def pages(server: ServerProcess, arguments: str) -> list[Json]:
    """Answers, oldest first, each from where the search of the previous one ended."""
    found = [server.ask(f"EVENTS {arguments} AFTER 0")]
    while found[-1]["events"] or "truncated" in found[-1]:
        found.append(server.ask(f"EVENTS {arguments} AFTER {found[-1]['seq']}"))
    return found


def test_an_answer_is_bounded_by_bytes(start_server: StartServer) -> None:
    server = start_server("--reply-buffer-bytes", "3000")
    exchange(server.port, b"".join(event(f"e{number}", "t", f'{{"x":"{"x" * 800}"}}') for number in range(20)))
    exchange(server.port, event("large", "t", f'{{"x":"{"x" * 9000}"}}') + event("last"))
    found = pages(server, "t 1000")

    assert [name for page in found for name in ids(page)] == [*(f"e{number}" for number in range(20)), "large", "last"]
    assert all(page["truncated"] for page in found[:-2])
    assert len(found) > 8
    newest = server.ask("EVENTS t 1000")
    assert (newest["truncated"], ids(newest)) == (True, ["last"]), "the next is larger than what is left"
    assert ids(server.ask(f"EVENTS t 1000 BEFORE {newest['events'][-1]['seq']}")) == ["large"]


@pytest.mark.parametrize("arguments", ["* 1000", "rare 1000", "rare* 1000", "r?re 3", "t* 7", "* 5 CONTAINS '\"n\":3'"])
def test_an_answer_is_bounded_in_time(start_server: StartServer, arguments: str) -> None:
    """The next answer begins where the last search ended, even if it found nothing: no event is left out."""
    server = start_server(changes=[changes.answers_cut_short, changes.small_slices])
    lines = [
        event(f"e{number}", "rare" if number % 50 == 7 else f"t{number % 9}", f'{{"n":{number % 7}}}')
        for number in range(200)
    ]
    for start in range(0, 200, 8):
        exchange(server.port, b"".join(lines[start : start + 8]))
    found = [one for page in pages(server, arguments) for one in page["events"]]
    wanted = [json.loads(line)["event_id"] for line in lines if is_wanted(json.loads(line), arguments)]
    assert [one["event_id"] for one in found] == wanted
    assert [one["seq"] for one in found] == sorted(one["seq"] for one in found)


def is_wanted(one: dict[str, Any], arguments: str) -> bool:
    if "CONTAINS" in arguments:
        return bool(one["payload"]["n"] == 3)
    return arguments[0] == "*" or (arguments[0] == "r") == (one["topic"] == "rare")


def test_newest_first_and_cut_short(start_server: StartServer) -> None:
    """The answer may be empty, and says that it was cut short. The client can resume from the last event it saw."""
    server = start_server(changes=[changes.answers_cut_short, changes.small_slices])
    for number in range(50):
        exchange(server.port, event(f"e{number}", f"t{number % 9}"))
    answer = server.ask("EVENTS * CONTAINS '\"e3\"'")
    assert (answer["events"], answer["truncated"], answer["seq"]) == ([], True, 50)
    found, before = [], 51
    while before > 1:
        answer = server.ask(f"EVENTS * 1000 {'' if before > 50 else f'BEFORE {before}'}")
        found += seqs(answer)
        before = found[-1]
    assert found == list(range(50, 0, -1))


def test_what_is_seen_and_what_is_subscribed_to_is_everything(server: ServerProcess) -> None:
    """``tail -n 10 --follow``: the newest events, and then those after the head that was seen."""
    exchange(server.port, b"".join(events("e", 30)))
    with Peer(server.port) as peer, Peer(server.port) as sender:
        seen = peer.ask(b"EVENTS * 10\n")
        sender.send(b"".join(events("f", 20)))
        sender.replies(20)
        peer.send(b"SUBSCRIBE * AFTER %d\n" % seen["seq"])
        assert peer.reply()["status"] == "ok"
        followed = [peer.reply()["event"]["seq"] for _ in range(20)]
    assert seqs(seen)[::-1] + followed == list(range(21, 51))


# --- waiting


def begin(peer: Peer, commands: bytes) -> None:
    """Send commands, and return when the server has begun with the first."""
    assert peer.ask(b"PING\n" + commands)["pong"]


def test_an_answer_waits_for_the_first_match(server: ServerProcess) -> None:
    """R16. Later replies of the connection wait as well."""
    exchange(server.port, b"".join(events("e", 3, "old")))
    with Peer(server.port) as peer:
        begin(peer, b"EVENTS new.* AFTER 3 WAIT 60\nPING\n")
        peer.half_close()
        for number in range(5):
            exchange(server.port, event(f"o{number}", "old"))
        exchange(server.port, event("a", "new.a"))
        lines = peer.rest()
    assert [ids(lines[0]), lines[0]["seq"]] == [["a"], 9]
    assert lines[1:] == [{"status": "ok", "pong": True}]


def test_what_is_there_is_not_waited_for(server: ServerProcess) -> None:
    exchange(server.port, b"".join(events("e", 3)))

    assert seqs(server.ask("EVENTS t AFTER 1 WAIT 60")) == [2, 3]
    assert server.ask("EVENTS t AFTER 3 UNTIL NOW WAIT 60")["events"] == [], "nothing will come up to there"


def test_waiting_ends(server: ServerProcess) -> None:
    """R16. What was searched during the wait need not be searched again."""
    exchange(server.port, b"".join(events("e", 3)))
    with Peer(server.port) as peer:
        begin(peer, b"EVENTS nothing AFTER 1 WAIT 1\n")
        exchange(server.port, b"".join(events("f", 3)))
        answer = peer.reply()
    assert (answer["events"], answer["seq"]) == ([], 6)


def test_an_event_that_matches_the_topic_alone_is_not_enough(server: ServerProcess) -> None:
    with Peer(server.port) as peer:
        begin(peer, b"EVENTS t AFTER 0 CONTAINS wanted WAIT 60\n")
        for number in range(5):
            exchange(server.port, event(f"e{number}"))
        exchange(server.port, event("wanted"))
        assert ids(peer.reply()) == ["wanted"]


def test_many_wait(start_server: StartServer) -> None:
    """R16: one reply each; when the server stops, clients whose event has not come are answered too."""
    server = start_server("--address-connections", "900")
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.port)) for _ in range(WAITING)]
        for number, peer in enumerate(peers):
            begin(peer, b"EVENTS t%d AFTER 0 WAIT 60\n" % (number % 10))
        patient = stack.enter_context(Peer(server.port))
        begin(patient, b"EVENTS t1 AFTER 0 WAIT 60\n")
        exchange(server.port, b"".join(event(f"e{number}", f"t{number}") for number in range(5)))
        for number, peer in enumerate(peers):
            if number % 10 < 5:
                assert ids(peer.reply()) == [f"e{number % 10}"]
                assert peer.ask(b"PING\n")["pong"], "one reply, and no more"
        assert ids(patient.reply()) == ["e1"]
        stopping = in_background(server.stop)
        for number, peer in enumerate(peers):
            lines = peer.rest()
            assert len(lines) == (number % 10 >= 5)
            assert all(line["events"] == [] and line["seq"] == 5 for line in lines)
        stopping.finish()
    assert server.process.returncode == 0
    assert "Traceback" not in server.log


def test_who_is_gone_waits_no_more(server: ServerProcess) -> None:
    """I6: if a thousand clients ask and reset, the server does not keep each of them for a minute."""
    for number in range(300):
        peer = Peer(server.port)
        peer.send(b"EVENTS nothing AFTER 0 WAIT 60\n" if number % 2 else b"EVENTS nothing AFTER 0 WAIT 60\nPING\n")
        peer.reset()
    wait_until(lambda: server.ask("STATS")["connections"] == 1)
    assert server.stop() == 0
    assert "Traceback" not in server.log


async def test_what_comes_while_it_is_looked_for_is_not_waited_for() -> None:
    """R16: a commit between the last search and the beginning of the wait."""
    engine = ListEngine()
    feed = Feed(engine, Intake(1000, 1 << 20))  # type: ignore[arg-type]
    follower = Follower(engine, feed)  # type: ignore[arg-type]
    state: Any = SimpleNamespace(engine=engine, feed=feed, follower=follower, config=Config())
    asker: Any = SimpleNamespace(identity=ANONYMOUS)

    def publish(topic: str) -> None:
        parts, commit = engine.append([Event.of(topic, "e", b'{"topic":"%b"}' % topic.encode())], {})
        feed.publish(parts, commit, engine.head)

    publish("other")
    answer = asyncio.create_task(reading.events(["t", "AFTER", "0", "WAIT", "60"], state, asker))
    async with asyncio.timeout(30):
        while not engine.reads:
            await asyncio.sleep(0)
        publish("t")  # after the head up to which the search goes
        while not answer.done():
            engine.answer()
            await asyncio.sleep(0)
    assert len(answer.result()["events"]) == 1
    feed.stop(replies.no_more_deliveries())


# --- time


@pytest.mark.engines("sqlite")  # a shared store uses the clock of the database
def test_a_clock_that_is_set_back(start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R17: received_at never falls, and SINCE is exact across the step, even for a moment that is still to come."""
    step = tmp_path / "step"
    monkeypatch.setitem(os.environ, changes.CLOCK_STEP, str(step))
    server = start_server(changes=[changes.clock_that_can_step])
    for number in range(5):
        exchange(server.port, event(f"before-{number}"))
    step.touch()
    for number in range(5):
        exchange(server.port, event(f"back-{number}"))
    assert len(server.ask("EVENTS t 100 SINCE 1m")["events"]) == 10, "a minute before what the clock says"
    server.stop()
    server.restart()
    exchange(server.port, event("restarted"))
    received = check_since(server)
    assert received[4:11] == [received[4]] * 7
    step.unlink()
    exchange(server.port, event("after"))
    assert check_since(server)[-1] > received[-1]
    assert "still to come" in server.ask("EVENTS t SINCE 2999-01-01T00:00Z")["detail"]


def check_since(server: ServerProcess) -> list[str]:
    """Check SINCE with each received_at; return all of them."""
    everything = server.listed("t")
    received = [one["received_at"] for one in everything]
    assert received == sorted(received)
    for moment in random.Random(1).sample(received, len(received)):
        wanted = [one["seq"] for one in everything if one["received_at"] >= moment]
        assert seqs(server.ask(f"EVENTS t 1000 SINCE {moment}")) == wanted
        with Peer(server.port) as peer:
            reply = peer.ask(f"SUBSCRIBE t SINCE {moment} LIMIT {len(wanted)}\n".encode())
            assert reply["after"] == wanted[0] - 1
    return received
