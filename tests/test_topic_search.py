"""TOPICS of a reader that may read only some topics: each answer does bounded work; in the end every topic is found."""

from __future__ import annotations

from typing import Any

import pytest

from aggregator.access.topics import Topics
from aggregator.server import topic_search
from aggregator.server.topic_search import Found, TopicSearches
from aggregator.storage.engine import Topic

MAY_READ = Topics(["*.mine"])
AT_ONCE, LONG = -1.0, 60.0
"""Seconds for an answer: enough for one look, and enough for all looks."""


class Store:
    """An engine with these topics."""

    def __init__(self, *names: str) -> None:
        self.names = sorted(names)
        self.looks = 0

    async def topics(self, limit: int, after: str) -> list[Topic]:
        self.looks += 1
        return [Topic(name, 1, 1) for name in self.names if name > after][:limit]


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_search, "PAGE", 10)


@pytest.fixture
def searches() -> TopicSearches:
    return TopicSearches()


def names(found: Found) -> list[str]:
    return [topic.name for topic in found.topics]


async def ask(searches: TopicSearches, store: Any, seconds: float, after: str = "", limit: int = 1000) -> Found:
    return await searches.find(store, MAY_READ, limit, after, seconds)


async def test_an_answer_for_which_there_was_time_is_complete(searches: TopicSearches) -> None:
    store = Store(*(f"{number:03}" for number in range(95)), "a.mine", "b.mine", "c.mine")

    assert await ask(searches, store, LONG, limit=2) == (
        [Topic("a.mine", 1, 1), Topic("b.mine", 1, 1)], 3, False,
    )  # fmt: skip
    found = await ask(searches, store, LONG, after="b.mine", limit=2)
    assert (names(found), found.total, found.truncated) == (["c.mine"], None, False)


async def test_the_same_question_goes_on_where_the_answer_was_cut(searches: TopicSearches) -> None:
    store = Store(
        *(f"{number:03}" for number in range(95)), "a.mine", *(f"b{number:03}" for number in range(95)), "c.mine"
    )
    seen: list[str] = []
    questions = 0
    while True:
        store.looks, questions = 0, questions + 1
        found = await ask(searches, store, AT_ONCE, after=seen[-1] if seen else "")
        assert store.looks <= 1
        assert found.total is None, "not all were looked at"
        seen += names(found)
        if not found.truncated:
            break
    assert seen == ["a.mine", "c.mine"]
    assert questions >= 19
    assert names(await ask(searches, store, LONG)) == ["a.mine", "c.mine"], "and begins afresh"


async def test_whoever_may_read_other_topics_does_not_go_on_there(searches: TopicSearches) -> None:
    store = Store(*(f"{number:03}" for number in range(95)))
    await ask(searches, store, AT_ONCE)

    found = await searches.find(store, Topics(["00*"]), 3, "", LONG)  # type: ignore[arg-type]
    assert (names(found), found.total) == (["000", "001", "002"], 10)


async def test_what_is_remembered_is_bounded_and_short_lived(
    searches: TopicSearches, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(*(f"{number:03}" for number in range(95)))
    for number in range(2 * topic_search.REMEMBERED):
        await ask(searches, store, AT_ONCE, after=f"0{number}")
    assert len(searches._reached) == topic_search.REMEMBERED

    await ask(searches, store, AT_ONCE)
    store.names.insert(0, "0.mine")
    monkeypatch.setattr(topic_search, "REMEMBERED_S", 0.0)
    assert names(await ask(searches, store, LONG)) == ["0.mine"]
