"""Answers are read a slice at a time: the slices together are the answer, and a small answer waits for one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aggregator.storage.sqlite.store import Store
from tests.harness import storage
from tests.harness.database_check import check_database
from tests.harness.keys import append, keys_of

BLOCKS = 40
HUGE = 1 << 40


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store with an event of each of three topics in each block; half of the blocks have their postings."""
    opened = await storage.open_store(tmp_path / "events.db")
    for number in range(BLOCKS):
        await append(opened, keys_of(f"{number}", 6))
        if number == BLOCKS // 2:
            await opened.postings.write()
    yield opened
    await opened.close()
    check_database(opened.database.path)


async def seqs(store: Store, limit: int, after: int | None, max_bytes: int = HUGE) -> tuple[list[int], bool]:
    found, cut = await store.events("t1", limit, after, max_bytes)
    return [one.seq for one in found], cut


@pytest.mark.parametrize("blocks", [1, 2, 3, 7, BLOCKS, 1000])
async def test_slices_of_any_size_are_the_same_answer(
    store: Store, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    storage.set_slice(monkeypatch.setattr, blocks)
    everything = [6 * block + place for block in range(BLOCKS) for place in (2, 5)]
    for limit in (1, 2, 3, 30, 80, 1000):
        assert await seqs(store, limit, None) == (everything[::-1][:limit], False)
        for after in (0, 1, 2, 3, 100, 119, 120, 125, 126, 127, 130, 238, 239, 240, 1 << 40):
            expected = [seq for seq in everything if seq > after][:limit]
            assert await seqs(store, limit, after) == (expected, False)


async def test_an_answer_that_takes_long_is_cut_short_and_the_next_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.set_slice(monkeypatch.setattr, 3, answer_s=0.0)
    assert await seqs(store, 1000, None) == ([6 * block + place for block in (39, 38, 37) for place in (5, 2)], True)
    found: list[int] = []
    cut, answers = True, 0
    while cut:
        more, cut = await seqs(store, 1000, found[-1] if found else 0)
        found += more
        answers += 1
    assert found == [6 * block + place for block in range(BLOCKS) for place in (2, 5)]
    assert answers <= 20, "each takes three blocks, and goes on in the last block of the one before"


async def test_postings_that_are_written_between_slices_hide_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.set_slice(monkeypatch.setattr, 1)
    everything = [6 * block + place for block in range(BLOCKS) for place in (2, 5)]
    for after, expected in ((None, everything[::-1]), (0, everything)):
        answer = asyncio.create_task(seqs(store, 1000, after))
        number = 0
        while not answer.done():
            await append(store, keys_of(f"meanwhile {after} {number}", 6))
            await store.postings.write()
            number += 1
        found, _ = await answer
        assert [seq for seq in found if seq <= everything[-1]] == expected
        assert number


async def test_a_small_answer_waits_for_a_slice_of_each_large_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.set_slice(monkeypatch.setattr, 1)
    ended: list[str] = []

    async def ask(name: str, limit: int) -> None:
        await store.events("t1", limit, None, HUGE)
        ended.append(name)

    large = [asyncio.create_task(ask(f"large {number}", 1000)) for number in range(5)]
    await asyncio.sleep(0)
    small = [asyncio.create_task(ask(f"small {number}", 1)) for number in range(5)]
    await asyncio.gather(*large, *small)

    assert ended[:5] == [f"small {number}" for number in range(5)]
