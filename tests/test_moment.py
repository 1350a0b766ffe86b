"""Moments as people type them, and as they are shown."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.wire import moment

NOW = 1_790_000_000_000


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("NOW", NOW),
        ("now", NOW),
        ("0s", NOW),
        ("30s", NOW - 30_000),
        ("10m", NOW - 600_000),
        ("2h", NOW - 7_200_000),
        ("7d", NOW - 604_800_000),
        ("999999999d", 0),
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1500),
        ("1970-01-01 01:00:00+01:00", 0),
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-02T00:00", 86_400_000),  # without a zone: UTC
        ("1969-12-31T23:59:59Z", -1000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),
        ("9999-12-31T23:59:60Z", 253_402_300_800_000),
        ("9999-12-31T23:59:59-14:00", 253_402_351_199_000),
        ("0001-01-01T00:00:00+14:00", -62_135_647_200_000),
    ],
)
def test_read(text: str, milliseconds: int) -> None:
    assert moment.read(text, NOW) == milliseconds


@pytest.mark.parametrize(
    "text",
    ["", "10", "m", "10M", "10 m", "-10m", "1.5h", "1e3s", "10w", "9999999999s", "2026-11-22", "yesterday", "١٠m"],
)
def test_what_is_no_moment(text: str) -> None:
    assert moment.read(text, NOW) is None


@given(text=st.text(max_size=30) | st.text("0123456789-:TZ+. WNOwsmhd", max_size=30))
def test_any_text_is_a_moment_or_none(text: str) -> None:
    found = moment.read(text, NOW)

    assert found is None or isinstance(found, int)


@given(milliseconds=st.integers(0, 253_402_300_799_999))
def test_what_is_shown_is_read_again(milliseconds: int) -> None:
    text = moment.shown(milliseconds)

    assert moment.read(text, NOW) == milliseconds
    assert datetime.fromisoformat(text).timestamp() == pytest.approx(milliseconds / 1000)
    assert datetime.fromisoformat(text).tzinfo == UTC
