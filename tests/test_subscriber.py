"""The Subscriber against real servers that stop, die, hang and change: every event once, in order, and none missing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop

from aggregator.client import inbox as client_inbox
from aggregator.client.delivered import DeliveredEvent
from aggregator.client.query import Position
from aggregator.client.sender import GaveUp
from aggregator.client.subscriber import TICK_S, Subscriber
from aggregator.client.subscription import AnotherStore, Gap, Refused, TakenOver
from aggregator.wire import Status
from tests.harness import wire
from tests.harness.background import in_background
from tests.harness.clock import Clock
from tests.harness.polling import DEADLINE_S, until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.tailing import remove_oldest, store

pytestmark = pytest.mark.timeout(120)


def subscriber(server: ServerProcess, patterns: str | list[str] = "*", **options: Any) -> Subscriber:
    return Subscriber("127.0.0.1", server.port, patterns, **options)


async def seqs_of(events: Subscriber) -> list[int]:
    return [event.seq async for event in events]


async def take(events: Subscriber, count: int) -> list[DeliveredEvent]:
    async with asyncio.timeout(DEADLINE_S):
        return [await anext(events) for _ in range(count)]


# --- what is read


async def test_the_history_comes_in_order_then_what_is_stored_meanwhile(server: ServerProcess) -> None:
    store(server.port, wire.events("old", 3000))
    async with subscriber(server, "t", after=0) as events:
        assert [event.seq for event in await take(events, 3000)] == list(range(1, 3001))
        store(server.port, wire.events("new", 500))
        assert [event.value["event_id"] for event in await take(events, 500)] == [f"new-{i}" for i in range(500)]


async def test_from_now_on_means_from_the_beginning_of_the_block(server: ServerProcess) -> None:
    store(server.port, wire.events("old", 3))
    async with subscriber(server) as events:
        assert events.position == 3
        store(server.port, wire.events("new", 3))
        assert [event.seq for event in await take(events, 3)] == [4, 5, 6]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"after": 0}, range(1, 11)),
        ({"after": 7}, range(8, 11)),
        ({"since": "1h"}, range(1, 11)),
        ({"since": "1970-01-01T00:00:00Z", "limit": 4}, range(1, 5)),
        ({"after": 0, "patterns": "t1"}, range(2, 11, 2)),
        ({"after": 0, "patterns": ["nope", "t[0]"]}, range(1, 11, 2)),
        ({"after": 0, "contains": '"n":3'}, [4]),
        ({"after": 0, "source": "nobody"}, []),
        ({"after": 0, "until": "1h"}, []),
    ],
    ids=str,
)
async def test_it_ends_where_it_was_told(server: ServerProcess, options: dict[str, Any], expected: Any) -> None:
    store(server.port, [wire.event(str(i), f"t{i % 2}", f'{{"n":{i}}}') for i in range(10)])
    async with asyncio.timeout(DEADLINE_S), subscriber(server, **{"until": "NOW", **options}) as events:
        assert await seqs_of(events) == list(expected)
        assert await seqs_of(events) == [], "the end stays the end"


async def test_shards_share_the_topics(server: ServerProcess) -> None:
    store(server.port, [wire.event(str(i), f"t{i % 20}") for i in range(100)])
    parts = []
    for number in (1, 2, 3):
        async with subscriber(server, after=0, until="NOW", shard=f"{number}/3") as events:
            parts.append(await seqs_of(events))
    assert all(parts)
    assert sorted(seq for part in parts for seq in part) == list(range(1, 101))


async def test_topics_that_are_called_like_options_are_topics(server: ServerProcess) -> None:
    names = ["AFTER", "since", "7", "it's", 'a "b"', "ü €", "#", "\\"]
    store(server.port, [wire.event(str(i), name) for i, name in enumerate(names)])
    for patterns in (names, names[::-1], ["x", *names]):
        async with subscriber(server, patterns, after=0, until="NOW") as events:
            assert [event.topic async for event in events] == names


@pytest.mark.parametrize("pattern", ["", "a\nb"])
def test_what_is_no_pattern_is_refused_at_once(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        Subscriber("127.0.0.1", 1, ["t", pattern])


def test_after_and_since_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        Subscriber("127.0.0.1", 1, after=1, since="1h")


async def test_an_event_is_the_bytes_that_were_sent(server: ServerProcess) -> None:
    odd = [
        wire.event("plain"),
        wire.event("digits", payload='{"n":1.10,"big":123456789012345678901234567890,"z":-0.0,"e":1E400}'),
        wire.event("names", seq="5", received_at='"never"', status='"event"', event='{"seq":1}'),
        wire.event("last", payload='{"x":",\\"seq\\":1,\\"received_at\\":\\"no\\"}"}'),
        wire.event("deep", payload='{"a":' + "[" * 247 + "]" * 247 + "}"),
        wire.event("half", payload='{"m":"cut \\ud83d"}'),
        b'{ "payload" : {} ,"topic":"t", "event_id":"blanks", "timestamp":"2026-11-22T10:00:00Z", "source":"s" }\n',
        wire.event("large", payload='{"text":"' + "x" * 900_000 + '"}'),
    ]
    store(server.port, odd)
    async with subscriber(server, after=0, until="NOW") as events:
        found = [event async for event in events]
    assert [event.json + b"\n" for event in found] == odd
    assert [event.seq for event in found] == list(range(1, len(odd) + 1))
    assert [event.value["event_id"] for event in found][:3] == ["plain", "digits", "names"]
    assert {event.topic for event in found} == {"t"}
    assert {len(event.received_at) for event in found} == {len("2026-11-22T10:00:00.000Z")}
    assert server.ask("EVENTS t 1 AFTER 0")["events"][0]["received_at"] == found[0].received_at


# --- positions


async def test_the_position_moves_when_the_next_event_is_asked_for(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 3))
    async with subscriber(server, after=0, until="NOW") as events:
        assert events.position == 0
        first = await anext(events)
        assert (first.seq, events.position) == (1, 0)
        await anext(events)
        assert events.position == 1
        assert await seqs_of(events) == [3]
        assert events.position == 3


async def test_the_position_of_batches_moves_by_a_batch(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 5000))
    expected: int | str | None = 0
    async with subscriber(server, after=0, until="NOW") as events:
        count = 0
        async for batch in events.batches():
            assert events.position == expected
            expected = batch[-1].seq
            count += len(batch)
    assert (count, expected, events.position) == (5000, 5000, 5000)


async def test_whoever_goes_on_from_the_position_misses_nothing(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 700))
    position: int | str | None = 0
    finished: list[int] = []
    while position != 700:
        async with subscriber(server, after=position, until="NOW") as events:
            with contextlib.suppress(ZeroDivisionError):
                async for event in events:
                    if event.seq % 100 == 99 and finished.count(event.seq - 1) < 2:
                        finished.append(event.seq - 1)  # so that it fails only once for each
                        raise ZeroDivisionError
                    finished.append(event.seq)
            position = events.position
    assert sorted(set(finished)) == list(range(1, 701))


async def test_the_position_follows_what_does_not_match(server: ServerProcess) -> None:
    async with subscriber(server, "nothing", after=0, beat_s=1) as events:
        store(server.port, wire.events("e", 10))
        waiting = asyncio.create_task(anext(events))
        await until(lambda: events.position == 10)
        waiting.cancel()


async def test_caught_up_is_told_once_when_all_that_was_there_is_finished(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 2000))
    told: list[int] = []
    seen: list[int] = []
    async with subscriber(server, after=0, on_caught_up=lambda: told.append(len(seen))) as events:
        seen += [event.seq for event in await take(events, 2000)]
        asking = asyncio.create_task(take(events, 1))
        await until(lambda: told)  # before the next commit, because the server then has one more event to catch up with
        store(server.port, wire.events("f", 1))
        await asking
    assert told == [2000]


# --- outages


@contextlib.asynccontextmanager
async def senders(server: ServerProcess, count: int) -> AsyncIterator[Callable[[], int]]:
    """Store ``count`` events, a few at a time, whatever happens to the server; yields a counter of the acked ones."""
    lines = wire.events("e", count)
    acked = 0

    def work() -> None:
        nonlocal acked
        while acked < count:
            with contextlib.suppress(OSError, AssertionError), wire.Peer(server.port) as peer:
                while acked < count:
                    part = lines[acked : acked + 20]
                    peer.send(b"".join(part))
                    assert {reply["status"] for reply in peer.replies(len(part))} <= {"stored", "duplicate"}
                    acked += len(part)

    background = in_background(work)
    yield lambda: acked
    await asyncio.to_thread(background.finish)


@pytest.mark.parametrize("end", [ServerProcess.kill, ServerProcess.stop], ids=["kill -9", "SIGTERM"])
async def test_a_server_that_comes_back_is_read_on(server: ServerProcess, end: Callable[[ServerProcess], Any]) -> None:
    count = 3000
    troubles: list[str] = []
    async with senders(server, count) as acked, subscriber(server, after=0, on_trouble=troubles.append) as events:
        reading = asyncio.create_task(take(events, count))
        for part in (500, 1000, 2000):
            await until(lambda part=part: acked() >= part)  # type: ignore[misc]
            await asyncio.to_thread(end, server)
            await asyncio.to_thread(server.restart)
        found = await reading
    stored = server.listed("t")
    assert [event.seq for event in found] == [event["seq"] for event in stored]
    assert len({event.value["event_id"] for event in found}) == count
    assert 1 <= len(troubles) <= 3
    assert all("trying again" in trouble for trouble in troubles)


async def test_what_the_first_connection_missed_is_waited_for(new_server: StartServer) -> None:
    server = new_server()
    server.start()
    server.stop()
    troubles: list[str] = []
    async with subscriber_when_started(server, troubles) as events:
        store(server.port, wire.events("e", 1))
        assert [event.seq for event in await take(events, 1)] == [1]
    assert len(troubles) == 1
    assert "cannot connect" in troubles[0]


@contextlib.asynccontextmanager
async def subscriber_when_started(server: ServerProcess, troubles: list[str]) -> AsyncIterator[Subscriber]:
    made = subscriber(server, on_trouble=troubles.append)
    entering = asyncio.create_task(made.__aenter__())
    await until(lambda: troubles)
    await asyncio.to_thread(server.restart)
    async with asyncio.timeout(DEADLINE_S):
        await entering
    try:
        yield made
    finally:
        await made.close()


async def test_a_server_that_is_silent_for_three_beats_is_left(server: ServerProcess) -> None:
    troubles: list[str] = []
    async with subscriber(server, after=0, beat_s=1, on_trouble=troubles.append) as events:
        store(server.port, wire.events("e", 3))
        await take(events, 3)
        server.signal(signal.SIGSTOP)
        waiting = asyncio.create_task(anext(events))
        await until(lambda: troubles)
        server.signal(signal.SIGCONT)
        await asyncio.to_thread(store, server.port, wire.events("f", 1))
        assert (await waiting).seq == 4
    assert "nothing heard for 3 s" in troubles[0]


async def test_the_silent_port_is_told(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.client.subscriber.REPLY_TIMEOUT_S", 0.5)
    with pytest.raises(GaveUp, match=r"no answer for 0\.5 s; is this the acked port\?"):
        async with asyncio.timeout(DEADLINE_S), Subscriber("127.0.0.1", server.silent_port, give_up_after_s=0.1):
            pass


async def test_heartbeats_keep_a_quiet_connection(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends a silence that is nearly too long."""
    monkeypatch.setattr("aggregator.client.subscriber.SILENT_BEATS", 60)
    clock = Clock(monkeypatch)
    troubles: list[str] = []
    beats = 0

    class Counting(Subscriber):
        def said(self, status: Status, seq: Position, fields: dict[str, Any]) -> None:
            nonlocal beats
            beats += status is Status.HEARTBEAT
            super().said(status, seq, fields)

    async with Counting("127.0.0.1", server.port, beat_s=1, on_trouble=troubles.append):
        for count in range(1, 5):
            await until(lambda count=count: beats >= count or troubles)  # type: ignore[misc]
            clock.skip(40)
    assert troubles == []


async def test_too_many_subscribers_wait_for_a_place(start_server: StartServer) -> None:
    server = start_server("--max-connections", "4")
    troubles: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(subscriber(server))
        late = asyncio.create_task(subscriber(server, on_trouble=troubles.append).__aenter__())
        await until(lambda: troubles)
        assert "busy: 3 subscribers" in troubles[0]
    async with asyncio.timeout(DEADLINE_S):
        await (await late).close()


async def test_it_gives_up_when_it_is_told_to(server: ServerProcess) -> None:
    server.stop()
    with pytest.raises(GaveUp, match="cannot connect"):
        async with asyncio.timeout(DEADLINE_S), subscriber(server, give_up_after_s=0.3):
            pass


async def test_it_gives_up_in_the_middle_too(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 1))
    async with subscriber(server, after=0, give_up_after_s=0.3) as events:
        await take(events, 1)
        await asyncio.to_thread(server.stop)
        for _ in range(2):
            with pytest.raises(GaveUp):
                await take(events, 1)


async def test_what_has_arrived_is_finished_before_the_end_is_told(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 1000))
    async with subscriber(server, after=0, until="NOW", give_up_after_s=0.1) as events:
        await anext(events)
        await until(lambda: events._ended)
        await asyncio.to_thread(server.kill)
        assert len(await seqs_of(events)) == 999


async def test_the_limit_counts_over_restarts(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 2))
    async with subscriber(server, after=0, limit=5) as events:
        await take(events, 2)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.restart)
        store(server.port, wire.events("f", 10))
        async with asyncio.timeout(DEADLINE_S):
            assert await seqs_of(events) == [3, 4, 5]


# --- pressure


async def test_a_slow_loop_body_leaves_the_backlog_with_the_server(server: ServerProcess) -> None:
    lines = [wire.event(str(i), payload='{"text":"' + "x" * 5000 + '"}') for i in range(4000)]
    store(server.port, lines)

    def states() -> list[str]:
        return [one["state"] for one in server.ask("SUBSCRIBERS")["subscribers"]]

    async with subscriber(server, after=0, until="NOW") as events:
        await anext(events)
        await until(lambda: states() == ["stalled"])
        assert events._inbox._bytes < 2 * client_inbox.MAX_WAITING_BYTES
        assert await seqs_of(events) == list(range(2, 4001))


async def test_a_loop_body_that_takes_longer_than_three_beats_keeps_the_connection(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    lines = [wire.event(str(i), payload='{"text":"' + "x" * 5000 + '"}') for i in range(1000)]
    store(server.port, lines)
    troubles: list[str] = []
    async with subscriber(server, after=0, on_trouble=troubles.append) as events:
        await anext(events)
        await until(lambda: events._paused)
        clock.skip(100)  # three beats are 45 s
        await asyncio.sleep(TICK_S)  # the subscriber looks at the clock as often
        assert len(await take(events, 999)) == 999
    assert troubles == []


def test_other_event_loops_do_the_same(server: ServerProcess) -> None:
    store(server.port, [wire.event(str(i), payload='{"text":"' + "x" * 5000 + '"}') for i in range(2000)])

    async def read() -> list[int]:
        async with subscriber(server, name="ship", after=0, until="NOW") as events:
            await anext(events)
            await until(lambda: events._paused)
            found = [1]
            async for event in events:
                found.append(event.seq)
                events.done(event)
            return found

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(read()) == list(range(1, 2001))
    assert server.ask("CURSORS")["cursors"][0]["acked"] == 2000


# --- names


async def test_a_name_goes_on_after_what_was_done(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 10))
    async with subscriber(server, name="ship", after=0) as events:
        for event in await take(events, 10):
            if event.seq <= 7:
                events.done(event)
    async with subscriber(server, name="ship", until="NOW") as events:
        assert events.position == 7
        assert await seqs_of(events) == [8, 9, 10]


async def test_what_is_done_behind_the_end_counts(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 10))
    for expected in ([1, 2, 3], [4, 5, 6], [7, 8, 9], [10]):
        async with asyncio.timeout(DEADLINE_S), subscriber(server, name="s", after=0, until="NOW", limit=3) as events:
            found = []
            async for event in events:
                events.done(event)
                found.append(event.seq)
            assert found == expected


async def test_acks_are_sent_while_it_reads(server: ServerProcess) -> None:
    def acked() -> int:
        return int(server.ask("CURSORS")["cursors"][0]["acked"])

    async with subscriber(server, name="ship") as events:
        store(server.port, wire.events("e", 3))
        for event in await take(events, 3):
            events.done(event)
        await until(lambda: acked() == 3)
        store(server.port, wire.events("f", 5000))
        for event in await take(events, 5000):
            events.done(event)
        await until(lambda: acked() == 5003)


async def test_after_a_crash_of_the_server_a_name_repeats_but_misses_nothing(server: ServerProcess) -> None:
    count = 2000
    found: list[int] = []
    async with senders(server, count) as acked, subscriber(server, name="ship", after=0) as events:

        async def read() -> None:
            async for event in events:
                found.append(event.seq)
                events.done(event)
                if len(set(found)) == count:
                    return

        reading = asyncio.create_task(read())
        for part in (400, 1200):
            await until(lambda part=part: acked() >= part)  # type: ignore[misc]
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.restart)
        async with asyncio.timeout(DEADLINE_S):
            await reading
    assert sorted(set(found)) == [event["seq"] for event in server.listed("t")]
    assert [cursor["acked"] for cursor in server.ask("CURSORS")["cursors"]] == [max(found)]


async def test_the_newest_reader_of_a_name_wins_and_the_other_stays_away(server: ServerProcess) -> None:
    async with subscriber(server, name="ship") as old:
        waiting = asyncio.create_task(anext(old))
        async with subscriber(server, name="ship") as new:
            with pytest.raises(TakenOver, match="subscribed as ship"):
                await waiting
            with pytest.raises(TakenOver):
                await anext(old)
            store(server.port, wire.events("e", 3))
            assert len(await take(new, 3)) == 3
            assert server.ask("SUBSCRIBERS")["total"] == 1


async def test_a_name_that_was_removed_is_not_made_again(server: ServerProcess) -> None:
    async with subscriber(server, name="ship") as events:
        server.ask("FORGET ship")
        with pytest.raises(TakenOver, match="forgot ship"):
            await take(events, 1)
    assert server.ask("CURSORS")["total"] == 0


async def test_the_last_ack_is_waited_for_only_so_long(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.client.subscriber.LAST_ACK_S", 0.2)
    troubles: list[str] = []
    store(server.port, wire.events("e", 1))
    async with subscriber(server, name="ship", after=0, on_trouble=troubles.append) as events:
        (event,) = await take(events, 1)
        server.signal(signal.SIGSTOP)
        events.done(event)
    server.signal(signal.SIGCONT)
    assert len(troubles) == 1
    assert "no answer to the last ack" in troubles[0]


# --- gaps, other stores, refusals


async def stop_and_remove_oldest(server: ServerProcess) -> int:
    await asyncio.to_thread(server.stop)
    gone = remove_oldest(server.db)
    await asyncio.to_thread(server.restart)
    return gone


async def test_a_gap_is_raised_and_what_is_left_can_be_read(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 3000))
    gone = await stop_and_remove_oldest(server)
    async with subscriber(server, after=5, until="NOW") as events:
        with pytest.raises(Gap) as raised:
            await take(events, 1)
        assert (raised.value.after, raised.value.seq) == (5, gone)
        assert events.position == gone
        assert await seqs_of(events) == list(range(gone + 1, 3001))


async def test_a_gap_is_told_instead_if_somebody_takes_it(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 3000))
    gone = await stop_and_remove_oldest(server)
    told: list[Gap] = []
    async with subscriber(server, after=0, until="NOW", on_gap=told.append) as events:
        assert await seqs_of(events) == list(range(gone + 1, 3001))
    assert [(gap.after, gap.seq) for gap in told] == [(0, gone)]


async def test_since_the_beginning_has_no_gap(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 3000))
    gone = await stop_and_remove_oldest(server)
    async with subscriber(server, since="1970-01-01T00:00:00Z", until="NOW") as events:
        assert await seqs_of(events) == list(range(gone + 1, 3001))


def replace_store(server: ServerProcess, events: int) -> None:
    """Put another store with this many events behind the same address."""
    server.stop()
    for file in server.db.parent.iterdir():
        file.unlink()
    server.restart()
    store(server.port, wire.events("other", events))


@pytest.mark.parametrize("events_there", [0, 3, 100])
async def test_another_store_is_raised_and_nothing_of_it_given(server: ServerProcess, events_there: int) -> None:
    store(server.port, wire.events("e", 10))
    async with subscriber(server, after=0) as events:
        await take(events, 10)
        await asyncio.to_thread(replace_store, server, events_there)
        for _ in range(2):
            with pytest.raises(AnotherStore):
                await take(events, 1)


async def test_another_store_is_read_from_its_beginning_if_somebody_takes_it(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 10))
    told: list[AnotherStore] = []
    async with subscriber(server, after=0, on_another_store=told.append) as events:
        await take(events, 10)
        first = events.store
        await asyncio.to_thread(replace_store, server, 3)
        assert [event.value["event_id"] for event in await take(events, 3)] == ["other-0", "other-1", "other-2"]
        assert [(one.expected, one.found) for one in told] == [(first, events.store)]


async def test_a_name_is_not_made_in_another_store(server: ServerProcess) -> None:
    async with subscriber(server, name="ship") as events:
        await asyncio.to_thread(replace_store, server, 0)
        with pytest.raises(AnotherStore):
            await take(events, 1)
    assert server.ask("CURSORS")["total"] == 0


async def test_a_position_of_another_store_is_told_apart(server: ServerProcess) -> None:
    store(server.port, wire.events("e", 10))
    async with subscriber(server) as events:
        name = events.store
    for after in (5, 500):
        with pytest.raises(AnotherStore):
            async with subscriber(server, after=after, store="0123456789abcdef"):
                pass
    async with subscriber(server, after=5, store=name, until="NOW") as events:
        assert await seqs_of(events) == [6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"patterns": "a[b"}, "not closed"),
        ({"after": 1}, "past the newest"),
        ({"after": "17.20.3.8"}, "after"),
        ({"since": "yesterday"}, "since"),
        ({"patterns": ["x"] * 65}, "at most 64 patterns"),
        ({"shard": "3/2"}, "shard"),
    ],
    ids=str,
)
async def test_what_the_server_refuses_is_raised(server: ServerProcess, options: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why):
        async with asyncio.timeout(DEADLINE_S), subscriber(server, **options):
            pass


async def test_a_name_keeps_its_patterns(server: ServerProcess) -> None:
    async with subscriber(server, "a", name="ship"):
        pass
    with pytest.raises(Refused, match="created with other patterns"):
        async with subscriber(server, "b", name="ship"):
            pass
