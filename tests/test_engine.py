"""What the server may expect of every engine."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from aggregator.event import Event, Events
from aggregator.storage.engine import AnyEngine, Commit, Cursor, Position, StoredEvent
from aggregator.wire.interest import interest_in
from tests.harness.dict_engine import DictEngine
from tests.harness.engines import ALL, LANES, opened, opened_postgres
from tests.harness.pages import page

MAX_TIME = 1 << 45
"""Milliseconds since 1970: the year 3084."""


@pytest.fixture(params=ALL)
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnyEngine]:
    if request.param in LANES:
        opening = opened_postgres(request.param, request.getfixturevalue("database"))
    else:
        opening = opened(request.param, tmp_path)
    async with opening as engine:
        yield engine


def made(*ids: str, topic: str = "t") -> list[Event]:
    return [Event.of(topic, one, b'{"event_id":"%s"}' % one.encode()) for one in ids]


async def append(engine: AnyEngine, *parts: list[Event]) -> Commit:
    """Store one batch that is filled from these parts."""
    batch = engine.new_batch()
    for part in parts:
        batch.add(Events.of(part))
    assert len(batch) == sum(map(len, parts))
    assert batch.size_bytes == sum(len(event.json) for part in parts for event in part)
    commit = await engine.append(batch)
    assert len(commit.seqs) == len(batch)
    return commit


async def seq_of(engine: AnyEngine, event_id: str, topic: str = "t") -> int | None:
    found: StoredEvent | None = await engine.event(topic, event_id)
    return found.seq if found else None


async def test_each_event_is_stored_under_the_seq_that_the_commit_says(engine: AnyEngine) -> None:
    commit = await append(engine, made("a", "b"), made("c", topic="u"))

    assert not commit.duplicates
    assert [commit.seq(position) for position in range(3)] == [
        await seq_of(engine, "a"),
        await seq_of(engine, "b"),
        await seq_of(engine, "c", "u"),
    ]
    assert len(set(commit.seqs)) == 3


async def test_no_topic_has_a_nul(engine: AnyEngine) -> None:
    """But a client may ask for such a topic."""
    await append(engine, made("a", topic="t"), made("b", topic="ta"), made("c", topic="u"))
    await engine.look()

    assert await engine.event("t\0a", "b") is None
    assert not (await engine.read(interest_in(("t\0a",)), 0, engine.head)).stretches
    assert [topic.name for topic in await engine.topics(10, "t\0a")] == ["ta", "u"]
    assert [topic.name for topic in await engine.topics(10, "\0")] == ["t", "ta", "u"]


async def test_a_duplicate_has_the_seq_of_the_first_whose_bytes_are_kept(engine: AnyEngine) -> None:
    first = await append(engine, made("a"))
    again = await append(engine, [Event.of("t", "a", b'{"other":1}')], made("b", "b"), made("a", topic="u"))

    assert set(again.duplicates) == {0, 2}
    assert again.seq(0) == first.seq(0)
    assert again.seq(2) == again.seq(1)
    assert again.seq(3) not in (again.seq(0), again.seq(1)), "the same id in another topic is another key"
    kept = await engine.event("t", "a")
    assert kept
    assert kept.json == b'{"event_id":"a"}'
    await engine.count()
    assert (engine.stored_total, engine.topics_total) == (3, 2)


async def test_a_part_of_a_commit_says_the_same_of_its_events(engine: AnyEngine) -> None:
    await append(engine, made("b", "d"))
    commit = await append(engine, made("a", "b", "c", "d", "e", "c"))
    whole = [commit.seq(position) for position in range(6)]

    for start, end in itertools.combinations(range(7), 2):
        part = commit.part(start, end - start)
        assert [part.seq(position) for position in range(end - start)] == whole[start:end]


async def test_seqs_grow_within_a_topic_and_are_not_used_twice(engine: AnyEngine) -> None:
    used: list[int] = []
    for number in range(10):
        commit = await append(engine, made("first", f"new-{number}"), made(f"new-{number}", topic="u"))
        used += [commit.seqs[1], commit.seqs[2]]

    assert len(set(used)) == len(used)
    for topic in ("t", "u"):
        found = await page(engine, topic, 100, 0)
        assert [one.seq for one in found] == sorted(one.seq for one in found)
        assert [one.json for one in found][-1] == b'{"event_id":"new-9"}'


async def test_events_are_read_newest_first_or_from_a_seq_on(engine: AnyEngine) -> None:
    await append(engine, made(*"abcde"), made("other", topic="u"))
    everything = await page(engine, "t", 100)
    positions = [engine.parse_position(str(one.seq)) for one in everything]

    assert [one.json[-3:-2] for one in everything] == [b"e", b"d", b"c", b"b", b"a"]
    assert await page(engine, "t", 2) == everything[:2]
    assert await page(engine, "t", 2, positions[3]) == [everything[2], everything[1]]
    assert await page(engine, "t", 2, positions[0]) == []
    assert await page(engine, "nowhere", 2) == []


async def read_on(engine: AnyEngine, position: Position) -> list[tuple[Position, bytes]]:
    """All events after a position, each with the position after it."""
    found: list[tuple[Position, bytes]] = []
    while position != engine.head:
        part = await engine.read(interest_in(("*",)), position, engine.head)
        assert part.gap is None
        for stretch in part.stretches:
            for seq, one in zip(stretch.seqs, stretch.json, strict=True):
                position = engine.advance(position, [seq])
                found.append((position, one))
        position = part.position
    return found


def by_topic(texts: list[bytes]) -> dict[bytes, list[bytes]]:
    """The events of each topic, in order."""
    topics: dict[bytes, list[bytes]] = {}
    for text in texts:
        topics.setdefault(text.rpartition(b"-")[2], []).append(text)
    return topics


async def test_a_position_is_a_safe_place_to_read_on_from(engine: AnyEngine) -> None:
    """A reader that reads everything and stops anywhere resumes with the next event of each topic, across slices."""
    for number in range(40):
        await append(engine, *(made(f"{number}-{one}", topic=f"topic {one % 5}") for one in range(7)))
    everything = await read_on(engine, 0)
    order = [json for _, json in everything]
    places: list[Position] = [0, *(position for position, _ in everything)]

    assert len(set(order)) == len(order) == 280
    for start in range(0, 281, 20):
        rest = [json for _, json in await read_on(engine, places[start])]
        assert by_topic(rest) == by_topic(order[start:])
        assert engine.parse_position(str(places[start])) is not None
        assert (engine.distance(places[start], engine.head) > 0) == (start < 280)
        assert engine.distance(engine.head, places[start]) == 0
        earlier = engine.earlier(engine.head, places[start])
        assert engine.distance(earlier, places[start]) == engine.distance(places[start], earlier) == 0
        assert engine.later(places[start], engine.head) == engine.head


async def test_reading_backwards_ends_at_0(engine: AnyEngine) -> None:
    everything = interest_in(("*",))
    for number in range(150):
        await append(engine, made(f"{number}", topic=f"topic {number % 5}"))
    found: list[bytes] = []
    position = engine.head
    while position != 0:
        part = await engine.read_back(everything, position)
        found += [json for stretch in part.stretches for json in reversed(stretch.json)]
        position = part.position

    numbers = [int(json.loads(one)["event_id"]) for one in found]
    for topic in range(5):
        assert [number for number in numbers if number % 5 == topic] == list(range(145 + topic, -1, -5))
    if isinstance(engine.head, int):  # between lanes there is no order within a millisecond
        assert numbers == list(range(149, -1, -1))


async def test_whoever_stops_anywhere_reads_on_backwards(engine: AnyEngine) -> None:
    everything = interest_in(("*",))
    for number in range(60):
        await append(engine, made(f"{number}", topic=f"topic {number % 5}"))
    found: list[bytes] = []
    position = engine.head
    while position != 0 and (part := await engine.read_back(everything, position)).stretches:
        newest = part.stretches[0]
        found.append(newest.json[-1])
        position = engine.retreat(position, [newest.seqs[-1]])

    assert sorted(found) == sorted(b'{"event_id":"%d"}' % number for number in range(60))


async def test_a_moment_has_a_position_before_its_events(engine: AnyEngine) -> None:
    assert await engine.seek(0) == await engine.seek(MAX_TIME) == engine.head
    first = await append(engine, made("a"))
    second = await append(engine, made("b", topic="u"))

    assert first.received_at <= second.received_at
    assert engine.distance(await engine.seek(0), engine.head) > 0
    assert await engine.seek(second.received_at + 1) == engine.head
    part = await engine.read(interest_in(("*",)), await engine.seek(first.received_at), engine.head)
    assert [json for stretch in part.stretches for json in stretch.json] == [made("a")[0].json, made("b")[0].json]


async def test_what_is_no_position_is_none(engine: AnyEngine) -> None:
    for text in ("", "x", "-1", "1.", ".1", "1e3", "9" * 30):
        assert engine.parse_position(text) is None
    too_far = engine.parse_position("1000000")
    assert too_far is not None
    assert engine.distance(engine.head, too_far) > 0


async def test_cursors_come_back_as_they_were_saved(engine: AnyEngine) -> None:
    one, two = Cursor("one", "{}", engine.head, 5, "ada"), Cursor("two", "{}", engine.head, 6, "ada")
    if engine.shared:
        assert [await engine.claim_cursor(one, None), await engine.claim_cursor(two, None)] == [one, two]
    else:
        await engine.save_cursors([one, two], [])
    await append(engine, made("a"))
    moved = replace(one, acked=engine.head, acked_at=7)
    assert not await engine.save_cursors([moved], ["two", "nobody"])

    assert [replace(cursor, claim="ada") for cursor in await engine.cursors()] == [moved]


async def test_topics_are_listed_in_order_of_code_points(engine: AnyEngine) -> None:
    names = ["B", "a", "b", "é", "日", "🙂"]
    commits = {name: await append(engine, made("x", "y", topic=name)) for name in random.Random(1).sample(names, 6)}
    listed = await engine.topics(10, "")

    assert [one.name for one in listed] == names
    assert [(one.stored, one.last_seq) for one in listed] == [(2, commits[name].seq(1)) for name in names]
    assert await engine.topics(2, "a") == listed[2:4]
    await engine.count()
    assert engine.topics_total == 6


async def test_a_prepared_batch_is_stored_as_any_other(engine: AnyEngine) -> None:
    one, two = engine.new_batch(), engine.new_batch()
    one.add(Events.of(made("a", "b")))
    two.add(Events.of(made("b", "c")))
    first, _ = await asyncio.gather(engine.append(one), engine.prepare(two))
    second = await engine.append(two)

    assert second.seq(0) == first.seq(1)
    assert set(second.duplicates) == {0}


async def test_it_says_what_it_is_in_its_own_words(engine: AnyEngine) -> None:
    names = [metric.name for metric in engine.gauges()]

    assert names
    assert len(set(names)) == len(names)
    assert all(metric.help for metric in engine.gauges())
    assert engine.name
    assert engine.version
    assert engine.location
    assert engine.appends_at_once >= 1
    assert not any(engine.troubles().values())


async def test_a_probe_and_upkeep_change_nothing(engine: AnyEngine) -> None:
    await append(engine, made(*"abc"))
    before = await page(engine, "t", 10)
    await engine.probe()
    await engine.upkeep(quiet=False)
    while engine.upkeep_left and await engine.upkeep(quiet=True):
        pass

    assert await page(engine, "t", 10) == before
    assert not engine.upkeep_left
    await engine.count()
    assert engine.stored_total == 3


# --- the engine that takes two batches at a time


async def test_of_two_batches_with_one_key_one_stores_it_and_the_other_is_told_of_it() -> None:
    engine = DictEngine(write_s=(0.002, 0.0))
    one, two = await asyncio.gather(append(engine, made("a", "b")), append(engine, made("b", "c")))

    assert not one.duplicates
    assert two.duplicates == {0: one.seq(1)}


async def test_a_key_whose_batch_was_not_stored_is_no_duplicate() -> None:
    engine = DictEngine(limit_bytes=100)
    huge = Event.of("t", "huge", b"x" * 1000)
    one, two = await asyncio.gather(
        append(engine, [*made("a"), huge]), append(engine, made("a", "b")), return_exceptions=True
    )

    assert isinstance(one, Exception)
    assert isinstance(two, Commit)
    assert not two.duplicates
    assert await seq_of(engine, "a") == two.seq(0)


async def test_an_append_that_is_cancelled_holds_up_nobody() -> None:
    engine = DictEngine(write_s=(60.0, 0.0))
    first = asyncio.create_task(append(engine, made("a")))
    await asyncio.sleep(0)
    second = asyncio.create_task(append(engine, made("a")))
    await asyncio.sleep(0)
    first.cancel()

    assert not (await second).duplicates


async def test_the_later_of_two_batches_may_be_the_first_to_be_stored() -> None:
    engine = DictEngine(write_s=(0.01, 0.0))
    one, two = await asyncio.gather(append(engine, made("a")), append(engine, made("b")))

    assert two.seq(0) < one.seq(0), "seqs grow in the order of commits, so a reader that pages misses none"
