"""Positions: how far a reader has come, in a store that numbers its events in lanes.

An event's seq is ``number * stride + lane``. With a stride of 1 there is one lane for ever, and a position is a number:
the seq of the last event. With any other stride a position is a text such as "17.20.3.8": the last number of each lane.

Pure: no database.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Final

from aggregator.position import STRIDE
from aggregator.storage.engine import Position

MAX_DIGITS: Final = 18
"""A number with this many digits fits into 64 bits, whatever its digits are."""

_SEQ: Final = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}")
_VECTOR: Final = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}(\.[0-9]{{1,{MAX_DIGITS}}}){{1,{STRIDE - 1}}}")

Vector = tuple[int, ...]
"""The last number of each lane."""

Pair = tuple[int, int]


class Positions:
    """The positions of one store. ``lanes`` may grow; every reader is at 0 in a new lane."""

    def __init__(self, stride: int, lanes: int) -> None:
        self.stride = stride
        self.lanes = lanes

    def shown(self, vector: Iterable[int]) -> Position:
        """The position in the form that all other code uses."""
        numbers = list(vector)
        return numbers[0] if self.stride == 1 else ".".join(map(str, numbers))

    def vector(self, position: Position) -> Vector:
        """The numbers of a position, one for each lane, or more if another server knows more lanes.

        Zeros after the lanes that are known here mean nothing, and are dropped.
        """
        numbers = [position] if isinstance(position, int) and self.stride == 1 else _numbers(position)
        while len(numbers) > self.lanes and not numbers[-1]:
            numbers.pop()
        return tuple(numbers) + (0,) * (self.lanes - len(numbers))

    def seqs(self, lane: int, first: int, following: int) -> range:
        """The seqs of consecutive numbers, from ``first`` to before ``following``."""
        return range(first * self.stride + lane, following * self.stride + lane, self.stride)

    def place(self, seq: int) -> tuple[int, int]:
        """The lane of an event, and its number there."""
        number, lane = divmod(seq, self.stride)
        return lane, number

    def parse(self, text: str) -> Position | None:
        """As ``Engine.parse_position``. The seq of an event is a position, too: after the event in its own lane, and at
        the beginning of all other lanes, because the seq does not say how far its reader has come in those.
        """
        if _SEQ.fullmatch(text):
            seq = int(text)
            if self.stride == 1:
                return seq
            lane, number = self.place(seq)
            if lane >= self.lanes:  # no event has this seq
                return self.shown([number + 1] * self.lanes)
            return self.shown(number if one == lane else 0 for one in range(self.lanes))
        if self.stride > 1 and _VECTOR.fullmatch(text):
            return self.shown(self.vector(text))
        return None

    def advance(self, position: Position, seqs: Sequence[int]) -> Position:
        """As ``Engine.advance``."""
        if not seqs:
            return position
        if self.stride == 1:
            return seqs[-1]
        numbers = list(self.vector(position))
        for seq in seqs:
            lane, number = self.place(seq)
            numbers[lane] = number
        return self.shown(numbers)

    def retreat(self, position: Position, seqs: Sequence[int]) -> Position:
        """As ``Engine.retreat``."""
        if not seqs:
            return position
        numbers = list(self.vector(position))
        for seq in seqs:
            lane, number = self.place(seq)
            numbers[lane] = max(0, number - 1)
        return self.shown(numbers)

    def distance(self, earlier: Position, later: Position) -> int:
        """As ``Engine.distance``."""
        return sum(max(0, after - before) for before, after in self._pairs(earlier, later))

    def earlier(self, one: Position, other: Position) -> Position:
        """As ``Engine.earlier``."""
        return self._each(min, one, other)

    def later(self, one: Position, other: Position) -> Position:
        """As ``Engine.later``."""
        return self._each(max, one, other)

    def _each(self, choose: Callable[[Pair], int], one: Position, other: Position) -> Position:
        """Choose one of the two numbers in each lane. A position that has all chosen numbers is returned as it is."""
        pairs = self._pairs(one, other)
        chosen = [choose(pair) for pair in pairs]
        if chosen == [first for first, _ in pairs]:
            return one
        return other if chosen == [second for _, second in pairs] else self.shown(chosen)

    def _pairs(self, one: Position, other: Position) -> list[Pair]:
        """The two numbers of each lane."""
        return list(zip_longest(self.vector(one), self.vector(other), fillvalue=0))


def _numbers(position: Position) -> list[int]:
    return [] if position == 0 else [int(number) for number in str(position).split(".")]
