"""A primary that is cut off from its standbys still answers reads: no server may go on reading from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from aggregator.event import Event, Events
from aggregator.storage.engine import AnyEngine
from aggregator.storage.postgres import link
from aggregator.storage.postgres.store import Store
from aggregator.wire.interest import interest_in
from tests.harness.polling import DEADLINE_S
from tests.harness.postgres import Cluster, StartCluster, url

SHORT_S = 3.0
"""The deadline of a statement in these tests, instead of 10 s."""


@pytest.fixture
def cluster(start_cluster: StartCluster) -> Cluster:
    return start_cluster(2)


@pytest.fixture
async def engine(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AnyEngine]:
    """An engine that has read, and written, on the first primary."""
    store = await Store.open(cluster.url(cluster.new_database()), 2, 1)
    await append(store, "old", "topic 0")
    await read(store, "topic ?")
    monkeypatch.setattr(link, "DEADLINE_S", SHORT_S)
    yield store
    await store.close()


async def elsewhere(cluster: Cluster, engine: AnyEngine) -> AnyEngine:
    """Cut off the primary, which goes on answering, and open an engine on the other two servers."""
    _, first, second = cluster.servers
    first.promote()
    second.follow(first)
    first.wait_for_standbys(1)
    name = engine.location.rpartition("/")[2]
    return await Store.open(url([first, second], name), None, 1)


async def append(engine: AnyEngine, event_id: str, topic: str) -> None:
    batch = engine.new_batch()
    batch.add(Events.of([Event.of(topic, event_id, b'{"event_id":"%s"}' % event_id.encode())]))
    await engine.append(batch)


async def read(engine: AnyEngine, pattern: str) -> set[bytes]:
    """All events that match a pattern, read as a follower of the store reads them."""
    await engine.look()
    found = await engine.read(interest_in((pattern,)), 0, engine.head, background=True, slices=8)
    assert found.position == engine.head
    return {json for stretch in found.stretches for json in stretch.json}


@pytest.mark.parametrize("pattern", ["topic 1", "topic [1-9]"])
async def test_who_writes_to_the_new_primary_reads_there_too(cluster: Cluster, engine: AnyEngine, pattern: str) -> None:
    """A topic that another server has created there is found by name and by glob, and so is one of our own."""
    other = await elsewhere(cluster, engine)
    await append(other, "theirs", "topic 1")
    assert await read(engine, pattern) == set(), "nothing has told it of the new primary"
    await append(engine, "ours", "topic 0")
    assert await read(engine, pattern) == {b'{"event_id":"theirs"}'}
    assert await engine.event("topic 1", "theirs")
    await append(engine, "new", "topic 2")
    assert await read(other, "topic 2") == {b'{"event_id":"new"}'}
    await other.close()


async def test_a_topic_is_made_on_the_new_primary(cluster: Cluster, engine: AnyEngine) -> None:
    """The statement that creates the topic is the first one that does not run on the old primary."""
    other = await elsewhere(cluster, engine)
    await append(engine, "new", "topic 3")
    assert await read(other, "topic 3") == {b'{"event_id":"new"}'}
    assert await read(engine, "topic 3") == {b'{"event_id":"new"}'}
    await other.close()


async def test_who_only_reads_finds_the_new_primary(cluster: Cluster, engine: AnyEngine) -> None:
    """The engine counts its events now and then, and that statement does not run on the old primary."""
    other = await elsewhere(cluster, engine)
    await append(other, "theirs", "topic 0")
    engine._census._counted_at = 0  # type: ignore[attr-defined]
    async with asyncio.timeout(DEADLINE_S):
        while await read(engine, "topic 0") != {b'{"event_id":"old"}', b'{"event_id":"theirs"}'}:
            await engine.verify()
    await other.close()
