"""Tokens, and texts that may be logged."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.access import token


def test_a_token_is_256_bits_that_no_other_has() -> None:
    made = {token.new() for _ in range(100)}

    assert len(made) == 100
    assert all(map(token.is_token, made))
    assert {len(one) for one in made} == {56}
    one = made.pop()
    assert token.digest(one) == hashlib.sha256(one.encode()).hexdigest()


@pytest.mark.parametrize("text", ["", "agg_", "hunter2", "agg_" + "a" * 51, "agg_" + "a" * 53, "AGG_" + "a" * 52])
def test_what_is_no_token(text: str) -> None:
    assert not token.is_token(text)


@given(st.text(), st.text(), st.integers(16, 56))
def test_no_token_is_left_in_a_text_that_may_be_logged(before: str, behind: str, length: int) -> None:
    shown = token.new()[:length]

    assert shown not in token.redacted(before + shown + behind)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ('rejected: "AUTH hunter2"', 'rejected: "AUTH (a token)"'),
        ('rejected: " auth\thunter2 and more"', 'rejected: " auth\t(a token)"'),
        ("usage: AUTH <token>", "usage: AUTH <token>"),
        ("a: unauthorized", "a: unauthorized"),
        ('"AUTHOR x"', '"AUTHOR x"'),
        ("x agg_abcdefghijkl", "x (a token)"),
        ("x AGG_ABCDEFGHIJKL", "x (a token)"),
        ("agg_abcdefghijk", "agg_abcdefghijk"),
        ("1 events in /srv/agg_data/events.db", "1 events in /srv/agg_data/events.db"),
        ("cannot read /etc/agg_tls/cert.pem", "cannot read /etc/agg_tls/cert.pem"),
    ],
)
def test_what_a_redacted_text_keeps(text: str, redacted: str) -> None:
    assert token.redacted(text) == redacted
