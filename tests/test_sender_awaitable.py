"""The Sender as a program uses it: mappings as events, replies as objects, and a reply for each caller that waits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from aggregator.client import GaveUp, NotOurProtocol, Reply, Sender
from aggregator.client.encode import event_line
from aggregator.wire import Status
from tests.harness import wire
from tests.harness.polling import DEADLINE_S
from tests.harness.server_process import ServerProcess

EVENT = {"topic": "t", "event_id": "a", "timestamp": "2026-11-22T10:00:00Z", "source": "s", "payload": {"n": 1}}


def sender(server: ServerProcess, **options: Any) -> Sender:
    return Sender("127.0.0.1", server.port, **options)


async def test_a_reply_is_an_object(server: ServerProcess) -> None:
    async with sender(server) as sending:
        assert await sending.store(EVENT) == Reply(Status.STORED, seq=1, topic="t", event_id="a")
        assert await sending.store(EVENT) == Reply(Status.DUPLICATE, seq=1, topic="t", event_id="a")
        rejected = await sending.store({**EVENT, "topic": ""})
        batch = await sending.store(b'[{"topic":"t"},%b]' % event_line({**EVENT, "event_id": "b"}))
    assert (rejected.status, rejected.code, rejected.seq) == (Status.REJECTED, "bad_event", None)
    assert rejected.detail
    assert rejected.detail.startswith("topic")
    assert not rejected.is_stored
    assert [one.status for one in batch.results] == [Status.REJECTED, Status.STORED]
    assert batch.results[1] == Reply(Status.STORED, seq=3, topic="t", event_id="b")
    assert not batch.is_stored
    assert batch.results[1].is_stored


async def test_what_is_missing_is_filled_in(server: ServerProcess) -> None:
    before = datetime.now(UTC)
    async with sender(server) as sending:
        replies = [await sending.store({"topic": "t", "payload": {"n": n}}) for n in range(2)]
    assert [reply.status for reply in replies] == [Status.STORED, Status.STORED]
    first, second = server.listed("t")
    assert first["source"] == socket.gethostname()
    assert first["event_id"] != second["event_id"]
    assert abs(datetime.fromisoformat(first["timestamp"]) - before) < timedelta(seconds=2 * DEADLINE_S)


@pytest.mark.parametrize(
    ("given", "encoded"),
    [
        (datetime(2026, 11, 22, 10, 0, 0, 5000, tzinfo=UTC), "2026-11-22T10:00:00.005000Z"),
        (datetime(2026, 11, 22, 10, tzinfo=timezone(timedelta(hours=1))), "2026-11-22T10:00:00+01:00"),
        ("2026-11-22 10:00", "2026-11-22 10:00"),
    ],
)
async def test_times_are_encoded_as_the_server_reads_them(server: ServerProcess, given: object, encoded: str) -> None:
    async with sender(server) as sending:
        assert (await sending.store({**EVENT, "timestamp": given})).is_stored
    assert server.listed("t")[0]["timestamp"] == encoded


async def test_what_a_program_gives_is_kept_and_other_fields_too(server: ServerProcess) -> None:
    event = {"payload": [1, None, "ü"], "trace": "x", **EVENT}
    async with sender(server) as sending:
        await sending.store(event)
    stored = server.listed("t")[0]
    assert {name: stored[name] for name in event} == event


async def test_what_is_no_json_is_raised_where_it_is_sent(server: ServerProcess) -> None:
    async with sender(server) as sending:
        with pytest.raises(TypeError):
            await sending.send({**EVENT, "payload": {"a": object()}})
        with pytest.raises(ValueError, match="one line"):
            await sending.send(b"PING")
        assert (await sending.store(EVENT)).seq == 1


async def test_futures_are_there_before_their_replies(server: ServerProcess) -> None:
    async with sender(server) as sending:
        futures = [await sending.submit({**EVENT, "event_id": str(i)}) for i in range(3000)]
        await sending.send({**EVENT, "event_id": "nobody waits"})
        assert [reply.seq for reply in await asyncio.gather(*futures)] == list(range(1, 3001))
    assert len(server.listed("t")) == 3001


async def test_callbacks_get_only_what_was_sent_for_them(server: ServerProcess) -> None:
    told: list[tuple[object, str]] = []
    async with sender(server, on_reply=lambda tag, status, reply: told.append((tag, status))) as sending:
        await sending.send(EVENT, "tag")
        await sending.store({**EVENT, "event_id": "b"})
        await sending.send(EVENT)
    assert told == [("tag", "stored"), (None, "duplicate")]


async def test_nobody_has_to_wait_any_more(server: ServerProcess) -> None:
    async with sender(server) as sending:
        future = await sending.submit(EVENT)
        future.cancel()
        assert (await sending.store(EVENT)).status is Status.DUPLICATE


async def test_replies_come_over_a_restart(server: ServerProcess) -> None:
    async with sender(server, on_trouble=lambda text: None) as sending:
        assert (await sending.store(EVENT)).seq == 1
        await asyncio.to_thread(server.kill)
        future = await sending.submit({**EVENT, "event_id": "b"})
        await asyncio.to_thread(server.restart)
        async with asyncio.timeout(DEADLINE_S):
            assert (await future).seq == 2


async def test_the_end_of_the_block_waits_for_every_reply(server: ServerProcess) -> None:
    async with sender(server) as sending:
        for line in wire.events("e", 2000):
            await sending.send(line.rstrip())
    assert len(server.listed("t")) == 2000


async def test_a_block_that_raises_waits_for_nothing(server: ServerProcess) -> None:
    await asyncio.to_thread(server.stop)
    with contextlib.suppress(ZeroDivisionError):
        async with asyncio.timeout(DEADLINE_S), sender(server, on_trouble=lambda text: None) as sending:
            future = await sending.submit(EVENT)
            raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="closed"):
        await future


async def test_who_waits_is_told_that_the_sender_gave_up(server: ServerProcess) -> None:
    await asyncio.to_thread(server.stop)
    with pytest.raises(GaveUp):
        async with sender(server, give_up_after_s=0.3, on_trouble=lambda text: None) as sending:
            await sending.store(EVENT)


async def test_who_waits_is_told_that_it_is_no_aggregator() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(NotOurProtocol):
            async with Sender("127.0.0.1", port) as sending:
                await sending.store(EVENT)
