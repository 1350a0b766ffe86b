"""Positions in a store with lanes: a position that is shown parses back, and an event moves only its own lane."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.position import STRIDE, behind
from aggregator.storage.postgres.positions import MAX_DIGITS, Positions

vectors = st.integers(2, 9).flatmap(lambda lanes: st.lists(st.integers(0, 10**12), min_size=lanes, max_size=lanes))


@given(vectors)
def test_a_position_that_is_sent_back_is_the_same(numbers: list[int]) -> None:
    positions = Positions(STRIDE, len(numbers))
    shown = positions.shown(numbers)

    assert positions.parse(str(shown)) == shown
    assert positions.vector(shown) == tuple(numbers)
    assert positions.distance(shown, shown) == 0


@given(st.integers(0, 10**15), st.integers(0, STRIDE - 1))
def test_an_event_is_found_by_its_seq(number: int, lane: int) -> None:
    positions = Positions(STRIDE, STRIDE)
    (seq,) = positions.seqs(lane, number, number + 1)

    assert positions.place(seq) == (lane, number)


@given(vectors, st.data())
def test_a_reader_advances_in_the_lanes_of_its_events_alone(numbers: list[int], data: st.DataObject) -> None:
    positions = Positions(STRIDE, len(numbers))
    expected = list(numbers)
    seqs = []
    for lane in data.draw(st.lists(st.integers(0, len(numbers) - 1), max_size=20)):
        expected[lane] += data.draw(st.integers(1, 5))
        seqs.append(expected[lane] * STRIDE + lane)
    advanced = positions.advance(positions.shown(numbers), seqs)

    assert positions.vector(advanced) == tuple(expected)
    assert positions.distance(positions.shown(numbers), advanced) == sum(expected) - sum(numbers)


@given(vectors, st.integers(0, 8))
def test_of_two_positions_each_may_be_ahead_of_the_other(numbers: list[int], which: int) -> None:
    positions = Positions(STRIDE, len(numbers))
    ahead = list(numbers)
    ahead[which % len(numbers)] += 7
    behind = [number + 100 for number in numbers]
    behind[which % len(numbers)] = numbers[which % len(numbers)]
    one, other = positions.shown(ahead), positions.shown(behind)

    assert positions.distance(other, one) == 7
    assert positions.distance(one, other) == 100 * (len(numbers) - 1)
    assert positions.earlier(one, other) == positions.shown(numbers)
    assert positions.vector(positions.later(one, other)) == tuple(map(max, ahead, behind))


@given(st.integers(2, 5), st.data())
def test_what_both_have_and_what_either_has(lanes: int, data: st.DataObject) -> None:
    """``earlier`` contains nothing that one of the two lacks, and ``later`` lacks nothing that one of them has."""
    positions = Positions(STRIDE, lanes)
    numbers = st.lists(st.integers(0, 9), min_size=lanes, max_size=lanes)
    one, other = positions.shown(data.draw(numbers)), positions.shown(data.draw(numbers))
    earlier, later = positions.earlier(one, other), positions.later(one, other)

    assert positions.distance(one, earlier) == positions.distance(other, earlier) == 0
    assert positions.distance(later, one) == positions.distance(later, other) == 0
    assert positions.distance(earlier, later) == positions.distance(one, other) + positions.distance(other, one)
    assert (earlier == one) == (positions.distance(other, one) == 0)
    assert positions.earlier(one, one) == positions.later(one, one) == one


def test_a_position_that_is_chosen_stays_as_it_is_written() -> None:
    """Positions are compared as texts, and an older one has fewer lanes."""
    positions = Positions(STRIDE, 3)

    assert positions.earlier("1.2", "1.2.0") == "1.2"
    assert positions.later("1.2.0", "1.2") == "1.2.0"
    assert positions.earlier("5.2.7", "1.2") == "1.2"


@pytest.mark.parametrize("text", ["3.4.0", "3.4.0.0.0"])
def test_zeros_of_lanes_that_are_not_there_say_nothing(text: str) -> None:
    assert Positions(STRIDE, 2).parse(text) == "3.4"
    assert Positions(STRIDE, 2).parse("3.4.0.1") == "3.4.0.1", "a lane that this server does not know yet"


@given(vectors, st.data())
def test_a_client_moves_a_position_as_the_engine_does(numbers: list[int], data: st.DataObject) -> None:
    positions = Positions(STRIDE, len(numbers))
    lanes = data.draw(st.lists(st.integers(0, len(numbers) - 1), max_size=20))
    seqs = [(number + 1) * STRIDE + lane for number, lane in enumerate(lanes)]

    assert behind(str(positions.shown(numbers)), seqs) == positions.advance(positions.shown(numbers), seqs)


def test_a_client_hears_of_a_lane_from_its_first_event() -> None:
    assert behind("3.4", [5 * STRIDE + 3, 6 * STRIDE]) == "6.4.0.5"


def test_who_reads_backwards_stands_before_what_was_read_last() -> None:
    positions = Positions(STRIDE, 3)

    assert positions.retreat("5.6.7", [6 * STRIDE + 1, 5 * STRIDE + 1, 7 * STRIDE + 2]) == "5.4.6"
    assert positions.retreat("5.6.7", []) == "5.6.7"
    assert positions.retreat("5.6.7", [0]) == "0.6.7"
    assert Positions(1, 1).retreat(9, [9, 7]) == 6


@given(vectors, st.integers(1, 5))
def test_lanes_that_are_added_are_read_from_their_beginning(numbers: list[int], more: int) -> None:
    few, many = Positions(STRIDE, len(numbers)), Positions(STRIDE, len(numbers) + more)
    old = few.shown(numbers)
    new = many.shown([*numbers, *[3] * more])

    assert many.vector(old) == (*numbers, *[0] * more)
    assert many.distance(old, new) == 3 * more
    assert few.distance(new, old) == 0
    assert few.distance(old, new) == 3 * more, "another server may know of more lanes"


@given(st.integers(0, 10**MAX_DIGITS - 1))
def test_with_one_lane_a_position_is_the_seq(seq: int) -> None:
    positions = Positions(1, 1)

    assert positions.parse(str(seq)) == seq
    assert positions.advance(seq, [seq + 1, seq + 5]) == seq + 5
    assert positions.distance(seq, seq + 5) == 5
    assert positions.vector(seq) == (seq,)
    assert list(positions.seqs(0, seq, seq + 2)) == [seq, seq + 1]


@pytest.mark.parametrize("text", ["", "x", "-1", "1.", ".1", "1..2", "1e3", "9" * 30, "1.-1", "1.2 ", "١"])
def test_what_is_no_position_is_none(text: str) -> None:
    for positions in (Positions(1, 1), Positions(STRIDE, 4)):
        assert positions.parse(text) is None


def test_a_vector_is_no_position_of_one_lane() -> None:
    assert Positions(1, 1).parse("1.2") is None


def test_the_seq_of_an_event_is_a_position_behind_it_in_its_lane_alone() -> None:
    positions = Positions(STRIDE, 3)

    assert positions.parse(str(17 * STRIDE + 1)) == "0.17.0"
    assert positions.parse("0") == "0.0.0"
    assert positions.vector(0) == (0, 0, 0)


def test_seqs_of_many_events_rise_in_each_lane() -> None:
    positions = Positions(STRIDE, 4)
    chosen = random.Random(1)
    position = positions.shown([0] * 4)
    last = [0] * 4
    for _ in range(100):
        lane = chosen.randrange(4)
        last[lane] += 1
        position = positions.advance(position, list(positions.seqs(lane, last[lane], last[lane] + 1)))
    assert positions.vector(position) == tuple(last)
