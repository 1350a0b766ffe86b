"""Postings are written later than blocks. Events are found before that too, and a commit changes no posting page."""

from __future__ import annotations

from pathlib import Path

from aggregator.storage.sqlite import postings
from aggregator.storage.sqlite.store import Store
from tests.harness import storage
from tests.harness.database_check import check_database
from tests.harness.keys import Key, append, keys_of
from tests.harness.pages import page

MANY_TOPICS = 60


def one_of_each(prefix: str) -> list[Key]:
    """One key of each topic."""
    return keys_of(prefix, MANY_TOPICS, MANY_TOPICS)


async def seqs_of_topic(store: Store, topic: str, after: int | None) -> list[int]:
    return [event.seq for event in await page(store, topic, 1000, after)]


async def written(store: Store) -> int:
    ((count,),) = await store.database.write("SELECT count(*) FROM postings")
    return int(count)


async def test_a_commit_changes_no_page_for_each_of_its_topics(tmp_path: Path) -> None:
    store = await storage.open_store(tmp_path / "events.db")
    for i in range(200):  # so that each topic has its own page in the index
        await append(store, one_of_each(f"before-{i}"))
        while store.postings.due:
            await store.postings.write()
    await storage.empty_wal(store)

    await append(store, keys_of("few", 10, topics=1))
    few = await storage.empty_wal(store)
    await append(store, one_of_each("all"))
    all_of_them = await storage.empty_wal(store)

    assert all_of_them - few < MANY_TOPICS / 5
    await store.close()
    check_database(store.database.path)


async def test_events_are_found_before_and_after_their_postings_are_written(tmp_path: Path) -> None:
    store = await storage.open_store(tmp_path / "events.db")
    seqs: list[int] = []
    kinds = set()
    for i in range(40):
        first_seq, _ = await append(store, one_of_each(f"{i}"))
        seqs.append(first_seq + 7)
        kinds.add(store.postings.due)
        for after in (0, seqs[i // 2] - 1, seqs[i // 2], seqs[i // 2] + 1):
            assert await seqs_of_topic(store, "t7", after) == [seq for seq in seqs if seq > after]
        assert await seqs_of_topic(store, "t7", None) == seqs[::-1]
        if store.postings.due:
            await store.postings.write()
            assert await written(store) == len(seqs) * MANY_TOPICS
    assert kinds == {True, False}
    await store.close()
    check_database(store.database.path)


async def test_what_a_server_left_unwritten_is_written_by_the_next(tmp_path: Path) -> None:
    store = await storage.open_store(tmp_path / "events.db")
    batches = 0
    while not store.postings.due:
        batches += 1
        await append(store, one_of_each(f"{batches}"))
    await store.close()

    store = await storage.open_store(store.database.path)
    assert store.postings.due
    assert await written(store) == 0
    await store.postings.write()
    assert not store.postings.due
    assert await written(store) == batches * MANY_TOPICS >= postings.DUE
    await store.close()
    check_database(store.database.path)


async def test_a_topic_that_has_no_new_events_is_soon_known_not_to(tmp_path: Path) -> None:
    """A lookup goes through at most about DUE postings, however many events there are."""
    store = await storage.open_store(tmp_path / "events.db")
    await append(store, keys_of("old", 10, topics=1))
    most = 0
    for i in range(1000):
        await append(store, [(f"other {i % 5}", f"{i}")])
        while store.postings.due:
            await store.postings.write()
        if i % 97 == 0:
            most = max(most, await storage.steps(store.database.reader, lambda: seqs_of_topic(store, "t0", None)))
    assert most < postings.DUE * 30
    await store.close()
    check_database(store.database.path)
