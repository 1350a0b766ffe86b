"""Postings are written behind the blocks: events are found all the same, and a commit need not change their pages."""

from __future__ import annotations

from pathlib import Path

from aggregator import postings
from aggregator.event import Event
from aggregator.store import Store
from tests.checker import check_database
from tests.test_store import append, made, steps

MANY_TOPICS = 60


def one_of_each(prefix: str) -> list[Event]:
    """An event of each topic."""
    return [
        Event.of(f"t{i}", f"{prefix}-{i}", b'{"event_id":"%s-%d"}' % (prefix.encode(), i)) for i in range(MANY_TOPICS)
    ]


async def seqs_of_topic(store: Store, topic: str, after: int | None) -> list[int]:
    found, _ = await store.events(topic, 1000, after, 1 << 20)
    return [event.seq for event in found]


async def written(store: Store) -> int:
    ((count,),) = await store._write("SELECT count(*) FROM postings")
    return int(count)


async def test_a_commit_changes_no_page_for_each_of_its_topics(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "events.db")
    for i in range(200):  # so that each topic has a page of its own in the index
        await append(store, one_of_each(f"before-{i}"))
        while store.work_due:
            await store.work(quiet=False)
    await store._write("PRAGMA wal_checkpoint(TRUNCATE)")

    await append(store, made("few", 10, 1))
    ((_, few, _),) = await store._write("PRAGMA wal_checkpoint(TRUNCATE)")
    await append(store, one_of_each("all"))
    ((_, all_of_them, _),) = await store._write("PRAGMA wal_checkpoint(TRUNCATE)")

    assert all_of_them - few < MANY_TOPICS / 5
    await store.close()
    check_database(store.path)


async def test_events_are_found_before_and_after_their_postings_are_written(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "events.db")
    seqs: list[int] = []
    kinds = set()
    for i in range(40):
        first_seq, _ = await append(store, one_of_each(f"{i}"))
        seqs.append(first_seq + 7)
        kinds.add(store.work_due)
        for after in (0, seqs[i // 2] - 1, seqs[i // 2], seqs[i // 2] + 1):
            assert await seqs_of_topic(store, "t7", after) == [seq for seq in seqs if seq > after]
        assert await seqs_of_topic(store, "t7", None) == seqs[::-1]
        if store.work_due:
            await store.work(quiet=False)
            assert await written(store) == len(seqs) * MANY_TOPICS
    assert kinds == {True, False}
    await store.close()
    check_database(store.path)


async def test_what_a_server_left_unwritten_is_written_by_the_next(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "events.db")
    batches = 0
    while not store.work_due:
        batches += 1
        await append(store, one_of_each(f"{batches}"))
    await store.close()

    store = await Store.open(store.path)
    assert store.work_due
    assert await written(store) == 0
    await store.work(quiet=False)
    assert not store.work_due
    assert await written(store) == batches * MANY_TOPICS >= postings.DUE
    await store.close()
    check_database(store.path)


async def test_a_topic_that_has_no_new_events_is_soon_known_not_to(tmp_path: Path) -> None:
    """However many events there are: never are more than about DUE postings looked through."""
    store = await Store.open(tmp_path / "events.db")
    await append(store, made("old", 10, 1))
    most = 0
    for i in range(1000):
        await append(store, [Event.of(f"other {i % 5}", f"{i}", b"{}")])
        while store.work_due:
            await store.work(quiet=False)
        if i % 97 == 0:
            most = max(most, await steps(store._reader, lambda: seqs_of_topic(store, "t0", None)))
    assert most < postings.DUE * 30
    await store.close()
    check_database(store.path)
