"""Answers that take long leave turns of the event loop to others, and nothing is computed twice."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from aggregator.access.identity import Identity
from aggregator.access.topics import Topics
from aggregator.server import purpose, reading, turns
from aggregator.server.cursors import Cursors
from aggregator.server.turns import in_turns
from aggregator.wire.interest import Interest

NAMES, PATTERNS = 100, 5
READER = Identity("web", read=Topics([*(f"x{number}*y" for number in range(63)), "web.*"]))


def crowded() -> Any:
    """A server with many names, each made for several patterns, and with as many subscribers."""
    engine = SimpleNamespace(head=0, shared=False, distance=lambda earlier, later: later - earlier)
    cursors = Cursors(engine, lambda _: None, lambda *_: None)
    readers = []
    for number in range(NAMES):
        interest = Interest(tuple(f"web.{number}.{part:055}" for part in range(PATTERNS)))
        cursors.move(f"n{number:04}", interest, 0, READER)
        receiver = SimpleNamespace(peer="peer")
        readers.append(
            SimpleNamespace(
                interest=interest, receiver=receiver, name=None, position=0, delivered=0, stalled_since=None
            )
        )

    async def refresh() -> None:
        """No other server stores events here."""

    feed = SimpleNamespace(head=0, subscriptions=readers, state=lambda _: "live")
    follower = SimpleNamespace(refresh=refresh)
    return SimpleNamespace(cursors=cursors, engine=engine, feed=feed, follower=follower)


@pytest.mark.parametrize("command", [reading.cursors, reading.subscribers])
async def test_who_reads_is_told_in_short_turns(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader's names are judged by what it may read: with 64 globs this once was one turn of 20 s."""
    judged = 0

    def hardest(pattern: str) -> str:
        nonlocal judged
        judged += 1
        return pattern

    monkeypatch.setattr("aggregator.wire.pattern.hardest", hardest)
    purpose._is_visible.cache_clear()
    monkeypatch.setattr(turns, "TURN_S", 0.0)
    asker: Any = SimpleNamespace(identity=Identity("other", read=READER.read))
    state = crowded()
    others_turns = 0

    async def other() -> None:
        nonlocal others_turns
        while True:
            await asyncio.sleep(0)
            others_turns += 1

    beside = asyncio.create_task(other())
    for _ in range(2):
        answer = await command([], state, asker)
        assert answer["total"] == NAMES
        assert judged == NAMES * PATTERNS, "each pattern once, whatever the number of globs, and not again"
    beside.cancel()
    assert others_turns >= 4 * NAMES - 4


async def test_what_takes_no_time_is_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: now_s))
    others_turns = 0

    async def other() -> None:
        nonlocal others_turns
        others_turns += 1

    beside = asyncio.create_task(other())
    assert [one async for one in in_turns([1, 2, 3])] == [1, 2, 3]
    before = others_turns
    async for _ in in_turns([1, 2]):
        now_s += 2 * turns.TURN_S
    assert (before, others_turns) == (0, 1)
    await beside
