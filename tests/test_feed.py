"""The feed against a list: each reader gets every event once, in any order of commits, reads, pauses and resumes."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.event import Event
from aggregator.server import feed as feed_module
from aggregator.server import live, pieces
from aggregator.server.feed import Feed
from aggregator.server.follower import Follower
from aggregator.server.intake import Intake
from aggregator.server.subscription import Subscription
from aggregator.storage.engine import Slice, StorageUnreadable
from aggregator.wire import replies
from aggregator.wire.interest import interest_in
from tests.harness.list_engine import ListEngine
from tests.harness.sizes import FEED_EXAMPLES

PATTERNS = [("*",), ("a*",), ("b", "c"), ("nothing",)]
T = TypeVar("T")

TOPICS = ["a", "ab", "b", "c"]


@dataclass(eq=False)
class ListReceiver:
    """Takes lines while it has room: ``room_bytes`` until the test reads them."""

    peer: str = "a test"
    lines: list[Any] = field(default_factory=list)
    room_bytes: int = 1 << 30
    unread_bytes: int = 0
    over: bool = False
    pushes: int = 0
    wrong: list[bytes] = field(default_factory=list)

    def push(self, data: bytes) -> bool:
        if self.over or not data.endswith(b"\n"):
            self.wrong.append(data)
        self.pushes += 1
        self.lines += map(json.loads, data.splitlines())
        self.unread_bytes += len(data)
        return self.unread_bytes < self.room_bytes

    def subscription_over(self) -> None:
        self.over = True


Reader = tuple[Subscription, ListReceiver, int]
"""A subscription, its receiver, and the seq at which it began."""


class Scene:
    """A feed, its engine and its readers. The test decides each step."""

    def __init__(self, shared: bool = False) -> None:
        self.engine = ListEngine(shared=shared)
        self.feed = Feed(self.engine, Intake(1000, 1 << 20))  # type: ignore[arg-type]
        self.follower = Follower(self.engine, self.feed)  # type: ignore[arg-type]
        self.readers: list[Reader] = []
        self.receivers: list[ListReceiver] = []
        self.unpublished: list[Any] = []
        self.sent = 0

    def commit(self, topics: list[str], every_third_is_a_duplicate: bool = False) -> None:
        """Store a commit; it is published later."""
        events = []
        for topic in topics:
            self.sent += 1
            events.append(
                Event.of(topic, str(self.sent), b'{"topic":"%b","event_id":"%d"}' % (topic.encode(), self.sent))
            )
        positions = range(2, len(events), 3) if every_third_is_a_duplicate else ()
        parts, commit = self.engine.append(events, dict.fromkeys(positions, 1))
        self.unpublished.append((parts, commit, self.engine.head))

    def publish(self) -> None:
        if self.unpublished:
            parts, commit, head = self.unpublished.pop(0)
            self.follower.committed(parts, commit, head)
            self.engine.told.set()

    def subscribe(
        self, patterns: tuple[str, ...] = ("*",), after: int | None = None, *, until: int | None = None,
        left: int | None = None, room_bytes: int = 1 << 30, **options: Any,
    ) -> tuple[Subscription, ListReceiver]:  # fmt: skip
        start = int(self.feed.head) if after is None else min(after, int(self.feed.head))
        receiver = ListReceiver(room_bytes=room_bytes)
        until = None if until is None else max(start, min(until, int(self.feed.head)))
        subscription = Subscription(receiver, interest_in(patterns), start, until, left, **options)
        self.feed.admit(subscription)
        self.feed.begin(subscription)
        self.readers.append((subscription, receiver, start))
        self.receivers.append(receiver)
        return subscription, receiver

    def read(self, reader: Reader) -> None:
        """Let a client read the lines that wait for it."""
        subscription, receiver, _ = reader
        receiver.unread_bytes = 0
        self.feed.resume(subscription)

    async def settle(self) -> None:
        """Publish everything, give every reader room, and wait until nothing more happens."""
        while self.unpublished:
            self.publish()
        for subscription, receiver, _ in self.readers:
            receiver.room_bytes = 1 << 30
            receiver.unread_bytes = 0
            self.feed.resume(subscription)
        await self.catch_up()

    async def catch_up(self) -> None:
        """Answer all reads, until there are none left and no more lines are written."""
        quiet, lines = 0, 0
        while quiet < 20:
            await turns(1)
            before, lines = lines, sum(len(receiver.lines) for receiver in self.receivers)
            quiet = 0 if self.engine.answer() or lines != before else quiet + 1

    def wanted(self, subscription: Subscription, start: int) -> list[tuple[int, str]]:
        """Seq and id of each event that the subscription must get, of those stored by now."""
        until = self.engine.next_seq if subscription.until is None else int(subscription.until)
        return [
            (seq, event.event_id)
            for seq, event, _ in self.engine.stored()
            if start < seq <= until and subscription.interest.wants_topic(event.topic)
        ]

    def check(self) -> None:
        """Each reader has got what it wanted, once and in order, and every line other than an event is true."""
        assert [receiver.wrong for receiver in self.receivers if receiver.wrong] == []
        for subscription, receiver, start in self.readers:
            wanted = self.wanted(subscription, start)
            check_lines(receiver.lines, wanted, start)
            got = [line for line in receiver.lines if line["status"] == "event"]
            if subscription.over:
                assert receiver.over
                assert receiver.lines[-1]["status"] == "end"
                assert len(got) == (len(wanted) if subscription.left is None else min(len(wanted), len(got)))
            else:
                assert len(got) == len(wanted), "something is missing"
                assert subscription.position == self.feed.head
                assert [line["status"] for line in receiver.lines].count("caught_up") == 1
            assert subscription.delivered == len(got)


def check_lines(lines: list[Any], wanted: list[tuple[int, str]], start: int) -> None:
    """The events are the beginning of what was wanted. The seq of every other line is a safe place to resume from."""
    expected = deque(wanted)
    position = start
    for line in lines:
        if line["status"] == "event":
            event = line["event"]
            assert (event["seq"], event["event_id"]) == expected.popleft()
            position = event["seq"]
        else:
            assert line["seq"] >= position
            position = line["seq"]
            assert not expected or expected[0][0] > position, "an event would be skipped"


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses, and turns and pieces so small that a few events need several."""
    monkeypatch.setattr(feed_module, "BUSY_S", 0)
    monkeypatch.setattr(live, "WRITES_PER_TURN", 1)
    monkeypatch.setattr(live, "EVENTS_PER_WRITE", 2)
    monkeypatch.setattr(live, "ROUND_BYTES", 300)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 300)


def play(scenario: Callable[[Scene], Awaitable[None]], shared: bool = False) -> None:
    async def run() -> None:
        scene = Scene(shared)
        scene.feed.start()
        scene.follower.start()
        try:
            await scenario(scene)
        finally:
            scene.follower.stop()
            scene.feed.stop(replies.no_more_deliveries())

    asyncio.run(run())


# --- R1


class Choices:
    """A sequence of choices made from bytes, because drawing them one by one would take longer than playing them."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)
        self.left = True

    def pick(self, options: Sequence[T]) -> T:
        number = next(self._data, None)
        self.left = number is not None
        return options[(number or 0) % len(options)]

    def topics(self) -> list[str]:
        return [self.pick(TOPICS) for _ in range(self.pick(range(1, 9)))]


async def take_steps(scene: Scene, choices: Choices) -> None:
    scene.subscribe()
    scene.subscribe(("a*",))
    await scene.catch_up()
    steps = (
        burst,
        burst,
        flap,
        answer,
        answer,
        some_turns,
        catch_up,
        commit,
        publish,
        subscribe,
        read,
        pause,
        unsubscribe,
    )
    while choices.left:
        await choices.pick(steps)(scene, choices)
    await scene.settle()
    scene.check()


async def commit(scene: Scene, choices: Choices) -> None:
    scene.commit(choices.topics(), choices.pick((False, False, True)))


async def publish(scene: Scene, choices: Choices) -> None:
    scene.publish()


async def burst(scene: Scene, choices: Choices) -> None:
    """Commits that are published in one turn of the loop."""
    for _ in range(choices.pick((1, 1, 1, 2, 3, 4))):
        await commit(scene, choices)
    while scene.unpublished:
        scene.publish()


async def subscribe(scene: Scene, choices: Choices) -> None:
    scene.subscribe(
        choices.pick(PATTERNS),
        choices.pick((None, 0, 10, 30, 60)),
        until=choices.pick((None, None, None, 20, 60)),
        left=choices.pick((None, None, None, 1, 20)),
        room_bytes=choices.pick((1, 400, 1000, 1 << 30, 1 << 30)),
    )


async def read(scene: Scene, choices: Choices) -> None:
    scene.read(choices.pick(scene.readers))


async def pause(scene: Scene, choices: Choices) -> None:
    scene.feed.pause(choices.pick(scene.readers)[0])


async def flap(scene: Scene, choices: Choices) -> None:
    reader = choices.pick(scene.readers)
    scene.feed.pause(reader[0])
    scene.read(reader)


async def unsubscribe(scene: Scene, choices: Choices) -> None:
    if len(scene.readers) > 1:
        reader = choices.pick(scene.readers)
        scene.readers.remove(reader)
        subscription, receiver, start = reader
        scene.feed.end(subscription)
        check_lines(receiver.lines, scene.wanted(subscription, start), start)
        receiver.over = True


async def answer(scene: Scene, choices: Choices) -> None:
    scene.engine.answer()
    await turns(3)


async def catch_up(scene: Scene, choices: Choices) -> None:
    await scene.catch_up()


async def some_turns(scene: Scene, choices: Choices) -> None:
    await turns(choices.pick((1, 2, 3)))


@given(data=st.binary(min_size=100, max_size=500))
@settings(max_examples=FEED_EXAMPLES)
def test_any_order_of_events_gives_each_reader_all_of_them_once(data: bytes) -> None:
    """R1: commits that are stored before they are published, slices that end late, readers without room."""
    play(lambda scene: take_steps(scene, Choices(data)))


@given(data=st.binary(min_size=100, max_size=500))
@settings(max_examples=FEED_EXAMPLES)
def test_so_does_a_store_that_is_followed(data: bytes) -> None:
    """The same with commits of other servers, which the follower reads and publishes."""
    play(lambda scene: take_steps(scene, Choices(data)), shared=True)


def test_what_cannot_be_followed_is_skipped_by_nobody() -> None:
    async def scenario(scene: Scene) -> None:
        _, receiver = scene.subscribe()
        await scene.catch_up()
        waiting = asyncio.create_task(scene.feed.wait(interest_in(("b",)), 60))
        await turns(2)
        scene.engine.unreadable = True
        scene.commit(["a"])
        scene.publish()
        await turns(5)
        assert scene.engine.answer()
        await turns(5)
        scene.engine.unreadable = False
        await scene.settle()
        await waiting
        assert seqs(receiver) == [1]
        scene.check()

    play(scenario, shared=True)


# --- single steps


def seqs(receiver: ListReceiver) -> list[int]:
    return [line["event"]["seq"] for line in receiver.lines if line["status"] == "event"]


def said(receiver: ListReceiver) -> list[Any]:
    """The lines other than events."""
    return [line for line in receiver.lines if line["status"] != "event"]


def commit_and_publish(scene: Scene, *topics: str) -> None:
    scene.commit(list(topics))
    scene.publish()


def test_a_reader_that_is_looked_at_once_more_is_not_live_before_that() -> None:
    """R1: its buffer fills and empties while a slice is read. Then commits are published while it reads again."""

    async def scenario(scene: Scene) -> None:
        subscription, receiver = scene.subscribe()
        await turns(2)
        scene.feed.pause(subscription)
        scene.feed.resume(subscription)
        scene.engine.answer()
        await turns(2)
        for _ in range(3):
            commit_and_publish(scene, "a", "b")
            await turns(1)
        scene.engine.answer()
        await scene.catch_up()
        commit_and_publish(scene, "a")
        await turns(3)
        assert seqs(receiver) == [1, 2, 3, 4, 5, 6, 7]

    play(scenario)


def test_what_is_committed_during_a_round_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """R4: many readers get fewer writes with more in them, and none falls behind, although commits come faster."""
    monkeypatch.setattr(live, "ROUND_BYTES", 1 << 20)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1 << 20)

    async def scenario(scene: Scene) -> None:
        readers = [scene.subscribe(("*",)) for _ in range(20)]
        await scene.catch_up()
        for _ in range(10):
            commit_and_publish(scene, *"abc")
            await turns(1)
        scene.subscribe()  # joins in the middle of a round
        pushes = [receiver.pushes for _, receiver in readers]
        await scene.catch_up()
        scene.check()
        assert all(receiver.pushes - before <= 2 for (_, receiver), before in zip(readers, pushes, strict=True))
        numbers: dict[str, Any] = {metric.name: metric.value for metric in scene.feed.metrics()}
        assert numbers["fell_behind"] == 0

    play(scenario)


def test_a_commit_is_encoded_for_one_interest_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """S4: a large commit for a thousand readers with different interests must not need a thousand times its memory.

    A turn chooses and encodes no more than a turn may cost. Readers that are not reached before two more rounds are
    full have to read from the store.
    """
    monkeypatch.setattr(live, "ROUND_BYTES", 0)
    encoded: list[tuple[str, ...]] = []
    of_commit = pieces.of_commit

    def counting(interest: Any, *rest: Any) -> Any:
        encoded.append(interest.patterns)
        return of_commit(interest, *rest)

    monkeypatch.setattr(pieces, "of_commit", counting)

    async def scenario(scene: Scene) -> None:
        receivers = [scene.subscribe(("*", str(number)))[1] for number in range(50)]
        await scene.catch_up()
        commit_and_publish(scene, *"abc" * 10)
        assert len(encoded) == 1
        await turns(2)
        assert len(encoded) < 4
        commit_and_publish(scene, "a")
        commit_and_publish(scene, "a")
        await scene.catch_up()
        assert len(encoded) < 120, "most of the first commit's were given up"
        numbers: dict[str, Any] = {metric.name: metric.value for metric in scene.feed.metrics()}
        assert numbers["fell_behind"] > 30
        for receiver in receivers:
            assert seqs(receiver) == list(range(1, 33))

    play(scenario)


@pytest.mark.parametrize("broken", ["of_commit", "of_slice"])
def test_a_defect_harms_no_other_reader(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """R22. In the delivery of a commit: the readers get it from the store. In that of a slice: the reader is told."""
    sound = getattr(pieces, broken)

    def breaks(interest: Any, *rest: Any) -> Any:
        if "ab" in interest.patterns and scenes[0].sent:
            raise RuntimeError("a defect")
        return sound(interest, *rest)

    scenes: list[Scene] = []
    monkeypatch.setattr(pieces, broken, breaks)

    async def scenario(scene: Scene) -> None:
        scenes.append(scene)
        unlucky, lucky = scene.subscribe(("ab", "a"))[1], scene.subscribe()[1]
        await scene.catch_up()
        for _ in range(3):
            commit_and_publish(scene, "a", "b")
            await scene.catch_up()
            scene.feed.pause(scene.readers[0][0])  # so that it reads from the store
            commit_and_publish(scene, "a", "b")
            scene.read(scene.readers[0])
            await scene.catch_up()
        assert seqs(lucky) == list(range(1, 13))
        if broken == "of_commit":
            assert seqs(unlucky) == list(range(1, 13, 2))
        else:
            error = unlucky.lines[-1]
            assert (error["status"], error["code"], error["seq"]) == ("error", "storage", 2)
            assert unlucky.over
            assert unlucky.wrong == []

    play(scenario)


def test_what_cannot_be_read_ends_one_subscription() -> None:
    """R9. The position in its error line is a safe place to resume from."""

    async def scenario(scene: Scene) -> None:
        commit_and_publish(scene, "a", "a")
        live_one = scene.subscribe()[1]
        await scene.catch_up()
        scene.engine.unreadable = True
        unlucky = scene.subscribe(after=1)[1]
        await scene.catch_up()
        commit_and_publish(scene, "a")
        await turns(3)
        assert unlucky.lines == [
            {"status": "error", "code": "storage", "detail": "cannot read: it is a test", "seq": 1},
        ]
        assert unlucky.over
        assert seqs(live_one) == [3]

    play(scenario)


def test_what_is_gone_is_told() -> None:
    """R20: a reader past the gone events is told nothing; any other reader is told the exact range it misses."""

    async def scenario(scene: Scene) -> None:
        commit_and_publish(scene, *"abcabcabca")
        scene.engine.oldest = 7
        expected = {0: (0, 6), 4: (4, 6), 5: (5, 6), 6: None, 8: None}
        receivers = {after: scene.subscribe(after=after)[1] for after in expected}
        partly = scene.subscribe(after=0, until=3)[1]
        await scene.catch_up()
        for after, receiver in receivers.items():
            gaps = [(line["after"], line["seq"]) for line in said(receiver) if line["status"] == "gap"]
            assert gaps == ([expected[after]] if expected[after] else [])
            assert seqs(receiver) == [seq for seq in range(7, 11) if seq > after]
        assert partly.lines == [{"status": "gap", "after": 0, "seq": 3}, {"status": "end", "seq": 3}]

    play(scenario)


def test_a_reader_that_is_ahead_waits_for_the_head() -> None:
    """Another server has seen more. The feed reads for it only once: repeated reads would let nothing else happen."""

    async def scenario(scene: Scene) -> None:
        commit_and_publish(scene, "a", "b")
        looks: list[Any] = []
        read = scene.engine.read

        async def read_at_once(wanted: Any, after: Any, until: Any, **options: Any) -> Slice:
            looks.append((after, until))
            assert len(looks) < 9
            return Slice((), after) if after >= until else await read(wanted, after, until, **options)

        scene.engine.read = read_at_once  # type: ignore[method-assign,assignment]
        receiver = ListReceiver()
        subscription = Subscription(receiver, interest_in(("*",)), 3)
        scene.feed.admit(subscription)
        scene.feed.begin(subscription)
        await scene.catch_up()
        await turns(20)
        assert looks == [(3, 2)]
        scene.commit(["a"])
        scene.publish()
        await turns(20)
        assert looks == [(3, 2), (3, 3)]
        assert said(receiver) == [{"status": "caught_up", "seq": 3}]
        commit_and_publish(scene, "b")
        await turns(20)
        assert seqs(receiver) == [4]

    play(scenario)


async def test_who_comes_during_a_look_shares_the_next() -> None:
    """Callers that come during a look share the next look and its error. A cancelled caller takes it from nobody."""
    engine = ListEngine(shared=True)
    follower = Follower(engine, Feed(engine, Intake(1000, 1 << 20)))  # type: ignore[arg-type]
    looks: list[asyncio.Future[None]] = []

    async def look() -> None:
        looks.append(asyncio.get_running_loop().create_future())
        await looks[-1]

    engine.look = look  # type: ignore[method-assign]
    first = asyncio.create_task(follower.refresh())
    await turns(5)
    others = [asyncio.create_task(follower.refresh()) for _ in range(5)]
    await turns(5)
    others[0].cancel()
    await turns(5)
    assert len(looks) == 1
    looks[0].set_result(None)
    await first
    await turns(5)
    assert len(looks) == 2, "a look that had begun may have missed what they ask for"
    looks[1].set_exception(StorageUnreadable("the database is away"))
    results = await asyncio.gather(*others, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, *[StorageUnreadable] * 4]
    assert len(looks) == 2


def test_a_gap_line_that_fills_the_buffer_is_the_last_for_now() -> None:
    """S4: nothing is written after it."""

    async def scenario(scene: Scene) -> None:
        commit_and_publish(scene, *"abcabcabca")
        scene.engine.oldest = 7
        subscription, receiver = scene.subscribe(after=0, room_bytes=1)
        await scene.catch_up()
        assert receiver.lines == [{"status": "gap", "after": 0, "seq": 6}]
        assert scene.feed.state(subscription) == "stalled"
        await scene.settle()
        assert seqs(receiver) == [7, 8, 9, 10]

    play(scenario)


def test_who_is_ended_before_the_reply_has_left_is_told_behind_it() -> None:
    """R8, R19: the server stops, or the name is taken over, between the command and its reply."""

    async def scenario(scene: Scene) -> None:
        commit_and_publish(scene, "a", "b")
        receiver = ListReceiver()
        subscription = Subscription(receiver, interest_in(("*",)), 1)
        scene.feed.admit(subscription)
        assert len(scene.feed) == 1, "its place is taken"
        scene.feed.stop(replies.no_more_deliveries())
        assert (len(scene.feed), receiver.lines) == (0, [])
        scene.feed.begin(subscription)
        await scene.catch_up()
        (line,) = receiver.lines
        assert (line["code"], line["seq"]) == ("shutting_down", 1)
        assert receiver.over

    play(scenario)


def test_readers_that_are_gone_are_forgotten() -> None:
    """I6: readers with a limit wait at the head for the next commit, which may never come."""

    async def scenario(scene: Scene) -> None:
        for _ in range(20):
            subscription, _ = scene.subscribe(left=5)
            await scene.catch_up()
            scene.feed.end(subscription)
        for name, value in vars(scene.feed).items():
            if isinstance(value, dict | list | deque) and name != "_rate":
                assert len(value) == 0 or name == "_tasks", name

    play(scenario)


def test_a_reader_is_told_that_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat's position is a safe place to resume from, even if nothing has matched for long. 0: no heartbeats."""
    monkeypatch.setattr(feed_module, "TICK_S", 0.001)

    async def scenario(scene: Scene) -> None:
        often, never = scene.subscribe(("nothing",), beat_s=0.001)[1], scene.subscribe(("nothing",), beat_s=0)[1]
        full = scene.subscribe(("nothing",), beat_s=0.001, room_bytes=1)[1]
        await scene.catch_up()
        commit_and_publish(scene, "a", "b")
        async with asyncio.timeout(30):
            while often.lines[-1] != {"status": "heartbeat", "seq": 2}:
                await asyncio.sleep(0.001)
        assert never.lines == [{"status": "caught_up", "seq": 0}]
        (line,) = full.lines  # there is room for one, and a heartbeat may come before the reader has caught up
        assert line in ({"status": "caught_up", "seq": 0}, {"status": "heartbeat", "seq": 0})

    play(scenario)


def test_waiting_ends_with_a_match_with_the_time_and_with_the_server() -> None:
    """R16."""

    async def scenario(scene: Scene) -> None:
        matched = asyncio.create_task(scene.feed.wait(interest_in(("b",)), 60))
        others = [asyncio.create_task(scene.feed.wait(interest_in(("c*",)), 60)) for _ in range(3)]
        await scene.feed.wait(interest_in(("*",)), 0.001)
        commit_and_publish(scene, "a", "b")
        async with asyncio.timeout(30):
            await matched
        assert not any(task.done() for task in others)
        others.pop().cancel()
        scene.feed.stop(replies.no_more_deliveries())
        async with asyncio.timeout(30):
            await asyncio.gather(*others)

    play(scenario)
