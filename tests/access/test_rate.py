"""Rates: how long a sender has to pause."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.access.rate import BURST_S, Rate


def test_without_limits_nobody_pauses() -> None:
    rate = Rate(None, None)

    assert rate.take_events(10**9, 0.0) <= 0
    assert rate.take_bytes(10**12, 0.0) <= 0


def test_a_burst_is_free_and_what_follows_is_not() -> None:
    rate = Rate(100, None)

    assert rate.take_events(50, 1000.0) == pytest.approx(0)
    assert rate.take_events(50, 1000.0) == pytest.approx(0.5)
    assert rate.take_events(50, 1000.5) == pytest.approx(0.5)
    assert rate.take_events(1, 2000.0) <= 0


def test_events_and_bytes_are_limited_apart() -> None:
    rate = Rate(None, 1000)

    assert rate.take_events(10**6, 5.0) <= 0
    assert rate.take_bytes(1500, 5.0) == pytest.approx(1.0)


@given(
    per_s=st.floats(0.1, 1e6),
    turns=st.lists(st.tuples(st.integers(1, 500), st.floats(0, 2)), min_size=1, max_size=50),
)
def test_whoever_pauses_as_long_as_told_keeps_the_rate(per_s: float, turns: list[tuple[int, float]]) -> None:
    rate = Rate(per_s, None)
    start = now = 1000.0
    taken = 0
    for count, more_s in turns:
        assert taken <= (now - start + BURST_S) * per_s * 1.000001 + 1e-6
        taken += count
        now += max(0.0, rate.take_events(count, now)) + more_s
