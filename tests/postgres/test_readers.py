"""Readers of a database with several lanes: they get each event once, from whatever position they continue."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aggregator.client.subscriber import Subscriber
from tests.harness import tailing
from tests.harness.polling import DEADLINE_S
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Json, Peer, event, exchange

TOPICS = 12
"""So many that each lane has some."""


@pytest.fixture
def server(database: str, start_server: StartServer) -> ServerProcess:
    """A server whose database has four lanes."""
    return start_server("--lanes", "4", url=database)


def fill(server: ServerProcess, count: int, prefix: str = "e") -> list[str]:
    """Store events in all lanes; return their ids."""
    names = [f"{prefix}{number}" for number in range(count)]
    tailing.store(server.port, [event(name, f"topic {number % TOPICS}") for number, name in enumerate(names)])
    return names


def ids(found: list[Json]) -> list[str]:
    return [one["event_id"] for one in found]


def lines_until(peer: Peer, *statuses: str) -> list[Json]:
    lines = [peer.reply()]
    while lines[-1]["status"] not in statuses:
        lines.append(peer.reply())
    return lines


def read_all(peer: Peer, arguments: str) -> list[Json]:
    """The events up to ``caught_up``."""
    peer.send(f"SUBSCRIBE {arguments}\n".encode())
    return [line["event"] for line in lines_until(peer, "caught_up") if line["status"] == "event"]


# --- positions that a server does not have


@pytest.mark.parametrize("filled", [0, 30])
def test_zeros_of_lanes_that_are_not_there_say_nothing(server: ServerProcess, filled: int) -> None:
    """Such a position equals the one without the zeros: the server goes on serving everybody."""
    names = fill(server, filled)
    for after in ("0", "0.0", "0.0.0.0.0.0"):
        with Peer(server.port) as peer:
            assert sorted(ids(read_all(peer, f"* AFTER {after}"))) == sorted(names)
            assert peer.ask(b"PING\n")["pong"]


@pytest.mark.parametrize("after", ["0.0.0.0.1", "9.0.0.0", "0.0.0.9"])
def test_a_position_past_the_newest_of_any_lane_is_refused(server: ServerProcess, after: str) -> None:
    fill(server, 4)
    assert "is past the newest" in server.ask(f"EVENTS * AFTER {after}")["detail"]
    with Peer(server.port) as peer:
        assert "is past the newest" in peer.ask(f"SUBSCRIBE * AFTER {after}\n".encode())["detail"]


def test_what_is_no_position_is_told_so(server: ServerProcess) -> None:
    fill(server, 4)
    head = server.ask("EVENTS * 1")["seq"]
    for answer in (server.ask("EVENTS * AFTER x"), server.ask("EVENTS * BEFORE 1.x")):
        assert f"expected a seq from the server, such as {head}, got " in answer["detail"]


def test_a_reader_that_is_to_end_before_it_begins_ends_at_once(server: ServerProcess) -> None:
    fill(server, 20)
    head = server.ask("EVENTS * 1")["seq"]
    for arguments in (f"* AFTER {head} UNTIL 1h", "* UNTIL 1h", f"* AFTER {head} UNTIL NOW"):
        with Peer(server.port) as peer:
            peer.send(f"SUBSCRIBE {arguments}\n".encode())
            assert [(line["status"], line.get("seq")) for line in lines_until(peer, "end")][1:] == [("end", head)]


# --- acks


def test_an_ack_of_a_seq_moves_its_lane_alone(server: ServerProcess) -> None:
    names = fill(server, 40)
    with Peer(server.port) as peer:
        found = read_all(peer, "* AFTER 0 AS name")
        assert sorted(ids(found)) == sorted(names)
        for one in found[:30]:
            assert peer.ask(b"ACK %d\n" % one["seq"])["status"] == "ok"
    with Peer(server.port) as peer:
        assert sorted(ids(read_all(peer, "* AS name"))) == sorted(ids(found[30:]))
        for one in found:  # the first of them are before the cursor
            acked = peer.ask(b"ACK %d\n" % one["seq"])["acked"]
        assert acked == server.ask("EVENTS * 1")["seq"]
    (cursor,) = server.ask("CURSORS")["cursors"]
    assert (cursor["acked"], cursor["lag"]) == (acked, 0)


def test_what_was_not_sent_cannot_be_acked_in_any_lane(server: ServerProcess) -> None:
    fill(server, 40)
    head = server.ask("EVENTS * 1")["seq"]
    with Peer(server.port) as peer:
        assert peer.ask(b"SUBSCRIBE * AFTER 0 LIMIT 1 AS name\n")["after"] == "0.0.0.0"
        (one, _) = lines_until(peer, "end")
        assert "the last that was sent" in peer.ask(f"ACK {head}\n".encode())["detail"]
        acked = peer.ask(b"ACK %d\n" % one["event"]["seq"])["acked"]
        assert sorted(acked.split(".")) == ["0", "0", "0", "1"]


# --- our own client


async def take(events: Subscriber, count: int) -> list[str]:
    """Take the next events, report the last of them as done, and with it the others; return their ids."""
    found = []
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(count):
            one = await anext(events)
            found.append(str(one.value["event_id"]))
    events.done(one)
    return found


async def test_a_name_goes_on_after_what_was_done_in_all_lanes(server: ServerProcess) -> None:
    names = await asyncio.to_thread(fill, server, 200)
    found: list[str] = []
    for count in (70, 0, 1, 129):
        async with Subscriber("127.0.0.1", server.port, after=0, name="name") as events:
            found += await take(events, count) if count else []
    assert sorted(found) == sorted(names)
    (cursor,) = (await asyncio.to_thread(server.ask, "CURSORS"))["cursors"]
    assert cursor["lag"] == 0


async def test_after_an_outage_nothing_comes_again(server: ServerProcess) -> None:
    """In each lane it continues after the last event that arrived. So it does after each further outage."""
    names = await asyncio.to_thread(fill, server, 100)
    async with Subscriber("127.0.0.1", server.port, after=0, on_trouble=lambda _: None) as events:
        found = await take(events, 100)
        for part in ("second", "third"):
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.restart)
            names += await asyncio.to_thread(fill, server, 50, part)
            found += await take(events, 50)
    assert sorted(found) == sorted(names)


async def test_every_position_is_a_place_to_go_on_from(server: ServerProcess) -> None:
    names = await asyncio.to_thread(fill, server, 60)
    found: list[str] = []
    positions = []
    async with asyncio.timeout(DEADLINE_S), Subscriber("127.0.0.1", server.port, after=0, until="NOW") as events:
        async for one in events:
            found.append(str(one.value["event_id"]))
            positions.append(one.position)
    assert sorted(found) == sorted(names)
    for number in range(0, 60, 7):
        after = positions[number]
        async with Subscriber("127.0.0.1", server.port, after=after, until="NOW") as events:
            assert sorted([str(one.value["event_id"]) async for one in events]) == sorted(found[number + 1 :])


def test_a_cursor_file_holds_a_position_of_all_lanes(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "cursor"
    shown: list[str] = []
    for part in ("first", "second"):
        fill(server, 50, part)
        outcome = tailing.run("tail", server.port, "--after", "0", "--cursor-file", file)
        assert outcome.code == 0
        shown += ids(outcome.events)
    assert len(shown) == len(set(shown)) == 100


# --- newest first


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_pages_of_the_newest_have_every_event_once(server: ServerProcess, limit: int) -> None:
    names = fill(server, 40)
    found: list[str] = []
    answer = server.ask(f"EVENTS * {limit}")
    head = answer["seq"]
    while answer["events"]:
        assert answer["seq"] == head
        found += ids(answer["events"])
        answer = server.ask(f"EVENTS * {limit} BEFORE {answer['before']}")
    assert len(found) == 40
    assert sorted(found) == sorted(names)


def test_before_a_seq_is_before_it_in_its_lane(server: ServerProcess) -> None:
    exchange(server.port, b"".join(event(f"e{number}", "one") for number in range(5)) + event("x", "other"))
    found = server.ask("EVENTS one 10")["events"]
    assert ids(server.ask(f"EVENTS one 10 BEFORE {found[1]['seq']}")["events"]) == ["e2", "e1", "e0"]
    assert ids(server.ask(f"EVENTS one 10 BEFORE {found[-1]['seq']}")["events"]) == []


def test_many_of_the_newest_are_shown_once(server: ServerProcess) -> None:
    names = fill(server, 2500)
    outcome = tailing.run("tail", server.port, "-n", 2000, "*")
    assert outcome.code == 0
    shown = ids(outcome.events)
    assert len(shown) == len(set(shown)) == 2000
    assert set(shown) < set(names)
    for topic in range(TOPICS):
        its = [name for number, name in enumerate(names) if number % TOPICS == topic]
        count = sum(one["topic"] == f"topic {topic}" for one in outcome.events)
        assert [one for one in shown if one in set(its)] == its[-count:], "the newest of each topic, in order"
