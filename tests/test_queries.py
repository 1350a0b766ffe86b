"""Patterns and options; the options are read from the end of the line."""

from __future__ import annotations

import pytest

from aggregator.access.identity import ANONYMOUS
from aggregator.server import queries
from aggregator.server.queries import BadCommand

KNOWN = ("AFTER", "BEFORE", "SINCE", "AS", "SHARD", "BEAT")


@pytest.mark.parametrize(
    ("line", "patterns", "options"),
    [
        ("a", ["a"], {}),
        ("a b* c", ["a", "b*", "c"], {}),
        ("a AFTER 5", ["a"], {"AFTER": "5"}),
        ("a after 5 As me", ["a"], {"AFTER": "5", "AS": "me"}),
        ("AFTER", ["AFTER"], {}),
        ("AFTER 5", ["AFTER", "5"], {}),
        ("AFTER AFTER 5", ["AFTER"], {"AFTER": "5"}),
        ("a AS AS", ["a"], {"AS": "AS"}),
        ("a b AFTER", ["a", "b", "AFTER"], {}),
        ("a AFTER 5 b", ["a", "AFTER", "5", "b"], {}),
    ],
)
def test_options_stand_at_the_end(line: str, patterns: list[str], options: dict[str, str]) -> None:
    query = queries.parse(line.split(), KNOWN, "usage")

    assert (query.patterns, query.options) == (patterns, options)


@pytest.mark.parametrize(
    ("arguments", "detail"),
    [
        ([], "a topic or pattern is missing; usage: usage"),
        (["a", "AFTER", "1", "after", "2"], "AFTER is given twice; usage: usage"),
        (["a", "AFTER", "1", "SINCE", "1m"], "AFTER and SINCE exclude each other; usage: usage"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], detail: str) -> None:
    with pytest.raises(BadCommand) as raised:
        queries.parse(arguments, KNOWN, "usage", ("AFTER", "SINCE"))

    assert raised.value.rejection.detail == detail


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "1/0", "1", "1/", "/1", "a/b", "1/2/3", "-1/2", "1 /2", "1/99999999999"]
)
def test_a_bad_shard(text: str) -> None:
    query = queries.parse(["a", "SHARD", text], KNOWN, "usage")

    with pytest.raises(BadCommand, match="expected I/N with I from 1 to N"):
        query.interest(ANONYMOUS)


def test_a_shard() -> None:
    assert queries.parse(["a", "SHARD", "2/4"], KNOWN, "usage").interest(ANONYMOUS).shard == (2, 4)


def test_too_many_patterns() -> None:
    with pytest.raises(BadCommand, match="at most 64 patterns"):
        queries.parse([str(number) for number in range(65)], KNOWN, "usage").interest(ANONYMOUS)


def test_a_bad_pattern() -> None:
    with pytest.raises(BadCommand, match="the set that opens at character 2 is not closed"):
        queries.parse(["a[b"], KNOWN, "usage").interest(ANONYMOUS)


@pytest.mark.parametrize("text", ["-1", "11", "1.5", "", "x", "1" * 5000, "1_0", " 1"])
def test_a_bad_number(text: str) -> None:
    with pytest.raises(BadCommand, match="beat: expected a number from 0 to 10"):
        queries.parse(["a", "BEAT", text], KNOWN, "usage").seconds("BEAT", 5, 10)


def test_a_number_that_is_not_given_has_its_default() -> None:
    assert queries.parse(["a"], KNOWN, "usage").seconds("BEAT", 5, 10) == 5
