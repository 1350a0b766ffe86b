"""Several servers on one database: each hears of events that the others store, and their readers share names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from aggregator.event import Event, Events
from aggregator.storage.engine import AnyEngine, Cursor, StorageBusy
from aggregator.storage.postgres.store import Store
from aggregator.wire.interest import interest_in
from tests.harness.account import Account
from tests.harness.load_client import Load
from tests.harness.polling import wait_until
from tests.harness.reading import Reading, verify
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Json, Peer, event, exchange

Two = tuple[AnyEngine, AnyEngine]
Servers = tuple[ServerProcess, ServerProcess]


@pytest.fixture(params=[1, 4], ids=["one lane", "four lanes"])
def lanes(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
async def engines(database: str, lanes: int) -> AsyncIterator[Two]:
    """Two engines on one database."""
    one, other = await Store.open(database, lanes, 0), await Store.open(database, None, 0)
    yield one, other
    await one.close()
    await other.close()


@pytest.fixture
def servers(database: str, lanes: int, start_server: StartServer) -> Servers:
    """Two servers on one database."""
    return start_server("--lanes", str(lanes), url=database), start_server(url=database)


async def store(engine: AnyEngine, *ids: str, topic: str = "t") -> None:
    batch = engine.new_batch()
    batch.add(Events.of(Event.of(topic, one, b'{"event_id":"%s"}' % one.encode()) for one in ids))
    await engine.append(batch)


# --- engines


async def test_what_one_stores_the_other_finds(engines: Two) -> None:
    one, other = engines
    for number in range(8):
        await store(one, f"e{number}", topic=f"topic {number}")
    assert other.head != one.head
    await other.look()
    await other.count()
    found = await other.read(interest_in(("*",)), 0, other.head, slices=8)

    assert other.head == one.head
    assert {json for stretch in found.stretches for json in stretch.json} == {
        b'{"event_id":"e%d"}' % number for number in range(8)
    }
    assert {topic for stretch in found.stretches for topic in stretch.topics} == {f"topic {n}" for n in range(8)}
    assert (other.stored_total, other.topics_total) == (8, 8)
    assert other.store_id == one.store_id


async def test_lanes_that_one_adds_the_other_uses_from_its_next_look_on(database: str) -> None:
    old = await Store.open(database, 2, 0)
    new = await Store.open(database, 6, 0)
    for number in range(30):
        await store(new, f"e{number}", topic=f"topic {number}")
    await old.look()
    position = old.parse_position(str(new.head))
    assert position is not None
    found = await old.read(interest_in(("*",)), 0, position, slices=100)

    assert str(new.head).count(".") == 5
    assert old.head == new.head
    assert old.distance(old.head, position) == 0
    assert sum(len(stretch.seqs) for stretch in found.stretches) == 30
    await old.close()
    await new.close()


async def test_counts_are_the_same_before_and_after_they_are_rolled_up(engines: Two) -> None:
    one, other = engines
    for number in range(6):
        await store(one, f"a{number}", f"b{number}", topic=f"topic {number % 3}")
    before = await other.topics(10, "")
    for engine in engines:  # the first one counts, and the other finds nothing left to count
        engine._census._counted_at = 0  # type: ignore[attr-defined]
        await engine.verify()
    await store(other, "c", topic="topic 1")
    after = await one.topics(10, "")
    await one.count()

    assert [topic.stored for topic in before] == [4, 4, 4]
    assert [topic.stored for topic in after] == [4, 5, 4]
    assert [topic.name for topic in after] == ["topic 0", "topic 1", "topic 2"]
    assert (one.stored_total, one.topics_total) == (13, 3)


async def test_only_the_last_claim_moves_a_cursor(engines: Two) -> None:
    one, other = engines
    first = await one.claim_cursor(Cursor("name", "{}", one.head, 1, "ada"), None)
    assert first
    await store(one, "a")
    second = await other.claim_cursor(Cursor("name", "{}", other.head, 2, "eve"), None)
    assert second
    moved = Cursor("name", "{}", one.head, 3, "ada")

    assert (second.acked, second.claim) == (first.acked, "eve")
    assert set(await one.save_cursors([moved], [])) == {"name"}
    assert await one.cursors() == [second]
    assert not await other.save_cursors([Cursor("name", "{}", one.head, 4, "eve")], [])
    assert (await one.cursors())[0].acked == one.head
    assert await one.claim_cursor(Cursor("name", '{"other":1}', one.head, 5, "ada"), None) is None
    assert not await one.save_cursors([], ["name"])
    assert await other.cursors() == []


async def test_what_may_have_been_done_to_a_cursor_is_done_once_more(
    engines: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement was carried out, but its answer is lost. A name that is new by the retry is left as it is."""
    one, other = engines
    query = one._query  # type: ignore[attr-defined]
    write = query.write
    lost: list[str] = []

    async def lose(statement: str, parameters: Any = None) -> list[Any]:
        rows: list[Any] = await write(statement, parameters)
        if statement.split()[0] in ("INSERT", "DELETE") and statement not in lost:
            lost.append(statement)
            raise StorageBusy("the answer is lost")
        return rows

    monkeypatch.setattr(query, "write", lose)
    claimed = await one.claim_cursor(Cursor("name", "{}", one.head, 1, "ada"), None)
    assert claimed == Cursor("name", "{}", one.head, 1, "ada")
    with pytest.raises(StorageBusy):
        await one.save_cursors([], ["name"])
    new = await other.claim_cursor(Cursor("name", "{}", one.head, 2, "eve"), None)
    assert not await one.save_cursors([], ["name"])
    assert await one.cursors() == [new]
    assert len(lost) == 2


# --- servers


def hear(reader: Peer, event_id: str) -> Json:
    """Read up to an event; return it."""
    while (line := reader.reply())["status"] != "event" or line["event"]["event_id"] != event_id:
        assert line["status"] in ("event", "caught_up", "heartbeat"), line
    return line


def told(reader: Peer) -> Json:
    """The next line that is neither an event, nor ``caught_up``, nor a heartbeat."""
    while (line := reader.reply())["status"] in ("event", "caught_up", "heartbeat"):
        pass
    return line


def test_readers_of_each_hear_of_both(servers: Servers) -> None:
    """Each topic has one order, the same on each server; live events are heard in the order of their storage."""
    accounts = [Account(f"t{number}") for number in range(5)]
    readers = [(Reading(server.port, f"{one.topic} AFTER 0", [one]), one) for server in servers for one in accounts]
    loads = [Load(account, servers[number % 2].port, 1, f"s{number}") for number, account in enumerate(accounts)]
    for load in loads:
        load.wait_for_acks(100)
    for load in loads:
        load.stop()
        load.finish()
    for account in accounts:
        account.verify(servers[0])
    for reader, account in readers:
        reader.wait_for(max(account.acked.values()))
        reader.close()
        verify(reader, [account])


def test_a_position_of_one_is_good_on_the_other_at_once(servers: Servers) -> None:
    one, other = servers
    for number in range(20):
        exchange(one.port, event(f"e{number}", f"topic {number % 4}"))
        position = one.ask("EVENTS * 1")["seq"]
        assert other.ask(f"EVENTS * 10 AFTER {position}")["events"] == []
        assert other.ask(f"EVENTS * 10 AFTER {position}")["seq"] == position
        assert other.ask(f"EVENT 'topic {number % 4}' e{number}")["event"]["event_id"] == f"e{number}"
        with Peer(other.port) as reader:
            assert reader.ask(f"SUBSCRIBE * AFTER {position}\n".encode())["head"] == position


def test_an_ack_is_read_on_every_server(servers: Servers) -> None:
    one, other = servers
    for number in range(30):
        exchange(one.port, event(f"e{number}"))
        (newest,) = other.ask("EVENTS t 1")["events"]
        assert newest["event_id"] == f"e{number}"
    assert other.ask("STATS")["stored_total"] == 30
    assert other.ask("TOPICS")["topics"][0]["stored"] == 30


def test_who_waits_is_woken_by_the_other(servers: Servers) -> None:
    one, other = servers
    exchange(one.port, event("old"))
    position = other.ask("EVENTS t 1")["seq"]
    with Peer(other.port) as waiting:
        waiting.send(f"EVENTS t 5 AFTER {position} WAIT 60\n".encode())
        wait_until(lambda: other.ask("CLIENTS")["clients"][0]["unanswered"] == 1)
        exchange(one.port, event("elsewhere", "u") + event("new"))
        assert [found["event_id"] for found in waiting.reply()["events"]] == ["new"]


def test_the_newest_reader_of_a_name_wins_on_whichever_server(servers: Servers) -> None:
    one, other = servers
    exchange(one.port, b"".join(event(f"e{number}") for number in range(4)))
    with Peer(one.port) as first, Peer(other.port) as second:
        first.ask(b"SUBSCRIBE t AFTER 0 AS name\n")
        seen = [hear(first, f"e{number}")["event"]["seq"] for number in range(4)]
        first.send(b"ACK %d\n" % seen[1])
        assert told(first)["status"] == "ok"
        second.send(b"SUBSCRIBE t AS name\n")
        assert second.reply()["status"] == "ok"
        assert hear(second, "e2")["event"]["seq"] == seen[2]
        line = told(first)
        assert (line["status"], line["code"]) == ("error", "taken_over")
        assert line["detail"].startswith("127.0.0.1:")
        late = first.ask(b"ACK %d\n" % seen[3])
        assert (late["status"], late["code"]) == ("rejected", "bad_command")
    (cursor,) = one.ask("CURSORS")["cursors"]
    assert cursor["lag"] == 2


def test_a_late_ack_of_who_has_lost_the_name_moves_nothing(servers: Servers) -> None:
    """The ack arrives before the server of the old reader knows that another one has the name."""
    one, other = servers
    exchange(one.port, b"".join(event(f"e{number}") for number in range(4)))
    with Peer(one.port) as first, Peer(other.port) as second:
        first.ask(b"SUBSCRIBE t AFTER 0 AS name\n")
        last = hear(first, "e3")["event"]["seq"]
        start = second.ask(b"SUBSCRIBE t AS name\n")["after"]
        first.send(b"ACK %d\n" % last)
        line = told(first)
        if line["status"] == "error":
            assert line["code"] == "taken_over"
            line = first.reply()
        assert (line["status"], line["code"]) == ("rejected", "bad_command")
    (cursor,) = other.ask("CURSORS")["cursors"]
    assert cursor["acked"] == start


def test_a_name_is_forgotten_on_every_server(servers: Servers) -> None:
    one, other = servers
    with Peer(one.port) as reader:
        reader.ask(b"SUBSCRIBE t AS name\n")
        assert [cursor["name"] for cursor in other.ask("CURSORS")["cursors"]] == ["name"]
        assert other.ask("FORGET name")["forgotten"]
        line = told(reader)
        assert (line["status"], line["code"]) == ("error", "taken_over")
        assert line["detail"].endswith("forgot name")
    assert one.ask("CURSORS")["cursors"] == []


def test_other_patterns_for_a_name_are_refused_on_every_server(servers: Servers) -> None:
    one, other = servers
    with Peer(one.port) as first, Peer(other.port) as second:
        first.ask(b"SUBSCRIBE t AS name\n")
        refused = second.ask(b"SUBSCRIBE u AS name\n")
        assert (refused["status"], refused["code"]) == ("rejected", "bad_command")
