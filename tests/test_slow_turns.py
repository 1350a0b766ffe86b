"""Slow turns: one at a time, a rest after each, and no client is forgotten."""

from __future__ import annotations

import asyncio
import itertools
import time

from aggregator.server.slow_turns import SlowTurns
from tests.harness.polling import until

TURN_S = 0.01


class Client:
    """Takes this many slow turns, and notes when each began."""

    def __init__(self, turns: SlowTurns, count: int) -> None:
        self.began: list[float] = []
        self._turns = turns
        self._left = count
        self.turn()

    def turn(self) -> None:
        self.began.append(time.monotonic())
        time.sleep(TURN_S)  # it blocks the loop on purpose
        self._left -= 1
        self._turns.rest(TURN_S, self.turn if self._left else lambda: None)

    @property
    def done(self) -> bool:
        return not self._left


def gaps_between(began: list[float]) -> list[float]:
    return [second - first for first, second in itertools.pairwise(began)]


async def test_between_slow_turns_the_loop_has_as_much_time_for_everything_else() -> None:
    turns = SlowTurns()
    clients = [Client(turns, 4) for _ in range(5)]
    await until(lambda: all(client.done for client in clients))
    _, *later = zip(*(client.began for client in clients), strict=True)

    began = [moment for turn in later for moment in turn]
    assert began == sorted(began), "they take turns"
    gaps = gaps_between(began)
    assert min(gaps) >= 1.9 * TURN_S, "a turn and a rest"


async def test_a_client_alone_rests_as_long_as_its_turn_took() -> None:
    client = Client(SlowTurns(), 3)
    await until(lambda: client.done)

    assert min(gaps_between(client.began)) >= 1.9 * TURN_S


async def test_a_client_that_fails_holds_up_nobody() -> None:
    def broken() -> None:
        raise RuntimeError("a defect")

    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    turns = SlowTurns()
    turns.rest(0.0, broken)
    client = Client(turns, 3)
    await until(lambda: client.done)

    assert len(failures) == 1


async def test_who_is_called_may_rest_again_at_once_and_alone() -> None:
    turns = SlowTurns()
    called = 0

    def call() -> None:
        nonlocal called
        called += 1
        turns.rest(0.0, call)

    turns.rest(0.0, call)
    await until(lambda: called > 10)
