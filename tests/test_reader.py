"""Reading the store slice by slice, compared with a plain list: any slices, any patterns, gaps, damaged blocks."""

from __future__ import annotations

import contextlib
import gc
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aggregator.event import Event, Events
from aggregator.storage.engine import StorageUnreadable
from aggregator.storage.sqlite.store import Store
from aggregator.wire.interest import Interest, interest_in
from tests.harness import storage
from tests.harness.sizes import READER_QUERIES


class Stored(NamedTuple):
    seq: int
    topic: str
    json: bytes
    received_at: int


class Filled:
    """A store, a list of the events in it, and a clock."""

    def __init__(self, store: Store, choices: random.Random) -> None:
        self.store = store
        self.choices = choices
        self.list: list[Stored] = []
        self.now = 1_000
        self.sent: list[Event] = []

    async def append(self, topics: list[str], duplicates: int = 0) -> None:
        """Store events of these topics as one batch, plus some that were sent before."""
        new: list[Event] = []
        for topic in topics:
            number = len(self.sent) + len(new)
            text = {"topic": topic, "event_id": str(number), "source": f"s{number % 3}", "payload": {"n": number % 7}}
            new.append(Event.of(topic, str(number), json.dumps(text).encode()))
        events = new + self.choices.choices(self.sent, k=min(duplicates, len(self.sent)))
        self.choices.shuffle(events)
        self.sent += new
        batch = self.store.new_batch()
        batch.add(Events.of(events))
        commit = await self.store.append(batch)
        for position, event in enumerate(events):
            if position not in commit.duplicates:
                self.list.append(Stored(commit.seqs[position], event.topic, event.json, commit.received_at))

    async def fill(self, batches: int) -> None:
        """Few topics have most of the events; now and then there is a new one; some batches are all duplicates."""
        for number in range(batches):
            self.now += self.choices.choice((-500, 0, 1, 1, 7, 300))
            topics = self.choices.choices(
                ["hot", "warm.1", "warm.2", "rare.1", "rare.2", f"new.{number}"],
                weights=[60, 10, 10, 1, 1, 5],
                k=self.choices.choice((0, 1, 1, 2, 5, 13)),
            )
            await self.append(topics, duplicates=self.choices.choice((0, 0, 1, 4)) if topics else 2)
            if self.choices.random() < 0.2:
                await storage.write_postings(self.store)

    @property
    def head(self) -> int:
        return self.store.head

    def wanted(self, interest: Interest, after: int, until: int) -> list[Stored]:
        return [
            one
            for one in self.list
            if after < one.seq <= until and interest.wants_topic(one.topic) and interest.wants_event(one.json)
        ]

    async def read(self, interest: Interest, after: int, until: int, background: bool = False) -> list[Stored]:
        """Read all slices from ``after`` to ``until``."""
        found: list[Stored] = []
        position = after
        while position < until:
            part = await self.store.read(interest, position, until, background)
            assert isinstance(part.position, int)
            assert position < part.position <= until, "it makes progress, and never goes too far"
            assert part.gap is None
            for stretch in part.stretches:
                for seq, one in zip(stretch.seqs, stretch.json, strict=True):
                    assert position < seq <= part.position
                    found.append(Stored(seq, json.loads(one)["topic"], one, stretch.received_at))
            position = part.position
        return [one for one in found if interest.wants_event(one.json)]

    async def read_back(self, interest: Interest, before: int) -> list[Stored]:
        """Read all slices from ``before`` back to the beginning."""
        found: list[Stored] = []
        position = before
        while position:
            part = await self.store.read_back(interest, position)
            assert isinstance(part.position, int)
            assert part.position < position
            for stretch in part.stretches:
                for seq, one in reversed(list(zip(stretch.seqs, stretch.json, strict=True))):
                    assert part.position < seq <= position
                    found.append(Stored(seq, json.loads(one)["topic"], one, stretch.received_at))
            position = part.position
        return [one for one in found if interest.wants_event(one.json)]

    def change(self, sql: str, *parameters: Any) -> None:
        """Change the stored data, as another program would."""
        with contextlib.closing(sqlite3.connect(self.store.database.path, isolation_level=None)) as other:
            other.execute(sql, parameters)


@pytest.fixture
async def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Filled]:
    """An empty store whose blocks, slices and plans are so small that a few hundred events need many of them."""
    storage.shrink_blocks(monkeypatch.setattr, events=4, size_bytes=400)
    storage.shrink_slices(monkeypatch.setattr, blocks=2, heads=5)
    storage.shrink_plans(monkeypatch.setattr, listed=3, page=2)
    store = await storage.open_store(tmp_path / "events.db")
    filled = Filled(store, random.Random(7))
    storage.set_clock(monkeypatch.setattr, lambda: filled.now)
    yield filled
    await store.close()


INTERESTS: list[Callable[[], Interest]] = [
    lambda: interest_in(("*",)),
    lambda: interest_in(("hot",)),
    lambda: interest_in(("warm.*",)),
    lambda: interest_in(("rare.*",)),  # few events: read through postings
    lambda: interest_in(("new.*",)),  # many topics: read by a scan
    lambda: interest_in(("new.1*", "rare.?")),
    lambda: interest_in(("rare.1",)),
    lambda: interest_in(("rare.1", "warm.2", "nowhere")),
    lambda: interest_in(("hot", "warm.1", "warm.2", "rare.1", "rare.2")),  # more names than are read through postings
    lambda: interest_in(("nowhere",)),
    lambda: interest_in(("nowhere*",)),
    lambda: interest_in(("*",), shard=(2, 3)),
    lambda: interest_in(("hot", "rare.2"), shard=(1, 2)),
    lambda: interest_in(("*",), source="s1"),
    lambda: interest_in(("w*",), source="s2", contains='"n": 3'),
    lambda: interest_in(("*",), contains="nowhere"),
]


@pytest.mark.parametrize("number", range(len(INTERESTS)))
async def test_any_slices_give_what_the_list_has(filled: Filled, number: int) -> None:
    """Even if the store grows, and gets new topics, between one reading and the next."""
    for _ in range(3):
        await filled.fill(20)
        for _ in range(READER_QUERIES):
            interest = INTERESTS[number]()
            after, until = sorted(filled.choices.choices(range(filled.head + 1), k=2))
            wanted = filled.wanted(interest, after, until)
            assert await filled.read(interest, after, until, filled.choices.random() < 0.5) == wanted
            if until:
                assert await filled.read_back(interest, until) == filled.wanted(interest, 0, until)[::-1]
        interest = INTERESTS[number]()
        assert await filled.read(interest, 0, filled.head) == filled.wanted(interest, 0, filled.head)


async def test_it_never_goes_backwards(filled: Filled) -> None:
    await filled.fill(10)
    for after, until in ((5, 5), (5, 3), (filled.head, filled.head), (filled.head, 0)):
        part = await filled.store.read(interest_in(("*",)), after, until)
        assert (part.stretches, part.position, part.gap) == ((), after, None)


async def test_a_moment_is_found_exactly(filled: Filled) -> None:
    """R17: the clock was set back again and again, but received_at never falls."""
    await filled.fill(60)
    times = [one.received_at for one in filled.list]
    assert times == sorted(times)
    for moment in {0, times[0] - 1, times[-1] + 1, *times, *(one + 1 for one in times)}:
        position = await filled.store.seek(moment)
        assert [one.seq for one in filled.list if one.received_at >= moment] == [
            one.seq for one in filled.list if one.seq > int(position)
        ]


async def test_the_last_time_outlives_a_restart(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """R17: the clock may be set back while the server is down."""
    filled.now = 5_000
    await filled.append(["a"])
    await filled.store.close()
    filled.now = 2_000
    filled.store = await storage.open_store(filled.store.database.path)
    try:
        await filled.append(["a"])
        assert [one.received_at for one in filled.list] == [5_000, 5_000]
    finally:
        await filled.store.close()


async def test_a_moment_is_found_although_the_beginning_is_gone(filled: Filled) -> None:
    await filled.fill(40)
    (oldest, received_at) = next((one.seq, one.received_at) for one in filled.list if one.seq > 50)
    filled.change("DELETE FROM blocks WHERE first_seq < ?", oldest)

    assert filled.store.head
    for moment in (0, received_at + 1):
        position = int(await filled.store.seek(moment))
        wanted = [one.seq for one in filled.list if one.received_at >= moment and one.seq > oldest + 4]
        assert set(wanted) <= {one.seq for one in filled.list if one.seq > position}


# --- what is gone


@pytest.mark.parametrize(
    "interest", [interest_in(("*",)), interest_in(("hot", "warm.1")), interest_in(("new.*", "hot"))]
)
async def test_what_is_gone_is_named_exactly(filled: Filled, interest: Interest) -> None:
    """R20: before a reader's position, at it, and after it."""
    await filled.fill(40)
    ((oldest,),) = await filled.store.database.read("SELECT first_seq FROM blocks WHERE first_seq > 30 LIMIT 1", ())
    filled.change("DELETE FROM blocks WHERE first_seq < ?", oldest)
    for after in (0, 1, oldest - 2, oldest - 1, oldest, oldest + 5):
        part = await filled.store.read(interest, after, filled.head)
        assert part.gap == (oldest - 1 if after < oldest - 1 else None)
        start = max(after, oldest - 1)
        wanted = filled.wanted(interest, start, int(part.position))
        assert [seq for stretch in part.stretches for seq in stretch.seqs] == [one.seq for one in wanted]
    part = await filled.store.read(interest, 0, 5)
    assert (part.gap, part.position) == (5, 5), "no further than it was to be read"


async def test_all_is_gone(filled: Filled) -> None:
    await filled.fill(10)
    filled.change("DELETE FROM blocks")
    part = await filled.store.read(interest_in(("*",)), 3, filled.head)

    assert (part.stretches, part.position, part.gap) == ([], filled.head, filled.head)


@pytest.mark.parametrize("patterns", [("*",), ("?",), ("a",)])
async def test_what_goes_while_it_is_read_is_in_the_gap(
    filled: Filled, patterns: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R20: events go after each statement, and so between two statements of one slice, and between slices."""
    await filled.append(["a"] * 16)
    read = filled.store.database.read

    async def slow(sql: str, *rest: Any) -> Any:
        rows = await read(sql, *rest)
        filled.change("DELETE FROM blocks WHERE first_seq < 9")
        return rows

    monkeypatch.setattr(filled.store.database, "read", slow)
    position = 2
    named: list[int] = []  # seqs that were read, or that are in a gap
    while position < filled.head:
        part = await filled.store.read(interest_in(patterns), position, filled.head)
        named += range(position + 1, int(part.gap or position) + 1)
        named += [seq for stretch in part.stretches for seq in stretch.seqs]
        position = int(part.position)
    assert named == list(range(3, filled.head + 1))


# --- damage


DAMAGE = [
    "data = substr(data, 2)",
    "data = data || x'00'",
    "data = 'text'",
    "data = NULL",
    "ends = '[]'",
    "ends = '[1, 2'",
    "ends = '[\"a\"]'",
    "ends = NULL",
    "received_at = 'today'",
    "received_at = -1",
    "received_at = 9223372036854775807",
]
TOPIC_DAMAGE = [
    "topics = '{'",
    "topics = '[1]'",
    "topics = '[]'",
    "topics = NULL",
    "numbers = '[9, 9, 9, 9]'",
    "numbers = '[null, null, null, null]'",
    "numbers = ''",
]


@pytest.mark.parametrize(
    ("damage", "patterns"),
    [(damage, patterns) for damage in DAMAGE for patterns in (("*",), ("[ab]",), ("a",))]
    + [(damage, patterns) for damage in TOPIC_DAMAGE for patterns in (("[a]",), ("a",))],
)
async def test_what_stands_before_a_damaged_block_is_read(
    filled: Filled, damage: str, patterns: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R9. A reader can also resume after it."""
    storage.shrink_slices(monkeypatch.setattr, blocks=4, heads=64)
    await filled.append(["a", "b"] * 10)  # blocks of four
    await storage.write_postings(filled.store)
    if damage.endswith("NULL"):
        filled.change("PRAGMA writable_schema = ON")
        damage = damage.replace("NULL", "zeroblob(1)")
    filled.change(f"UPDATE blocks SET {damage} WHERE first_seq = 9")
    interest = interest_in(patterns)
    part = await filled.store.read(interest, 2, filled.head)
    assert part.position == 8
    assert [seq for stretch in part.stretches for seq in stretch.seqs] == [
        one.seq for one in filled.wanted(interest, 2, 8)
    ]
    with pytest.raises(StorageUnreadable, match="the block of event 9 is damaged"):
        await filled.store.read(interest, 8, filled.head)
    assert await filled.read(interest, 12, filled.head) == filled.wanted(interest, 12, filled.head)
    with pytest.raises(StorageUnreadable, match="the block of event 9 is damaged"):
        await filled.read_back(interest, filled.head)


async def test_a_file_that_cannot_be_read_says_so(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(sql: str, *rest: Any) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    await filled.append(["a"])
    monkeypatch.setattr(filled.store.database, "read", broken)
    for work in (
        filled.store.read(interest_in(("*",)), 0, 1),
        filled.store.read_back(interest_in(("b",)), 1),
        filled.store.seek(5),
        filled.store.topics(1, ""),
        filled.store.cursors(),
    ):
        with pytest.raises(StorageUnreadable, match="cannot read: disk I/O error"):
            await work


# --- plans


async def test_a_topic_that_is_new_is_found_by_who_reads_already(filled: Filled) -> None:
    """A reader's plan is updated with each new topic, whichever way the reader reads."""
    interests = [interest_in(("new*",)), interest_in(("new.1", "new.2")), interest_in(("*.1",))]
    await filled.append(["old"] * 100)
    positions = [0] * len(interests)
    for number in range(8):
        await filled.append(["old", f"new.{number}", "old"])
        for index, interest in enumerate(interests):
            found = await filled.read(interest, positions[index], filled.head, background=index == 1)
            assert found == filled.wanted(interest, positions[index], filled.head)
            positions[index] = filled.head


async def test_two_readings_at_once_plan_once(filled: Filled) -> None:
    """A catch-up and a command with the same interest."""
    await filled.fill(40)
    interest = interest_in(("new.*",))
    for _ in range(3):
        part = filled.store.read(interest, 0, filled.head, background=True)
        other = filled.store.read(interest, 0, filled.head)
        assert await part == await other
        await filled.fill(3)


async def test_the_topics_are_not_all_looked_at_for_each_new_one(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R14: 100,000 topics, and a new one with each commit."""
    storage.shrink_plans(monkeypatch.setattr, listed=32, page=1000)
    await filled.append([f"t{number}" for number in range(500)] + ["hot"] * 600)
    judged: list[str] = []
    wants_topic = Interest.wants_topic

    def counting(self: Interest, name: str) -> bool:
        judged.append(name)
        return wants_topic(self, name)

    interest = interest_in(("t1?",))
    await filled.store.read(interest, filled.head - 1, filled.head)
    monkeypatch.setattr(Interest, "wants_topic", counting)
    for number in range(20):
        await filled.append([f"u{number}"])
        await filled.store.read(interest, filled.head - 1, filled.head)

    assert len(judged) < 100


async def test_a_plan_is_kept_no_longer_than_its_reader(filled: Filled) -> None:
    """I6: patterns that were once asked for must not cost memory forever."""
    await filled.fill(10)
    for number in range(200):
        await filled.store.read(Interest((f"a{number}*",)), 0, filled.head)
    gc.collect()

    assert storage.plans_kept(filled.store) < 10
