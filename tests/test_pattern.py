"""Globs over topics match as SQLite's GLOB does, whatever the pattern and the topic."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.wire import pattern
from aggregator.wire.pattern import BadPattern
from tests.harness.sizes import PATTERN_EXAMPLES

SETS = ["[a-c]", "[^b]", "[]a]", "[*]"]
PIECES = st.sampled_from([*"*?[]^-abcz./ \\é😀\n", *SETS])
PATTERNS = st.lists(PIECES, max_size=12).map("".join)
TEXTS = st.text(st.sampled_from("abcz.-^[]*?/ \\é😀\n"), max_size=12)


@pytest.fixture(scope="module")
def sqlite() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        yield connection


def globs(sqlite: sqlite3.Connection, glob: str, text: str) -> bool:
    return bool(sqlite.execute("SELECT ? GLOB ?", (text, glob)).fetchone()[0])


@given(glob=PATTERNS, texts=st.lists(TEXTS, min_size=1, max_size=10))
@settings(max_examples=PATTERN_EXAMPLES)
def test_it_matches_what_sqlites_glob_matches(sqlite: sqlite3.Connection, glob: str, texts: list[str]) -> None:
    """R14."""
    try:
        matches = pattern.compile(glob)
    except BadPattern:
        assert not any(globs(sqlite, glob, text) for text in texts)
    else:
        assert [bool(matches(text)) for text in texts] == [globs(sqlite, glob, text) for text in texts]


@given(
    glob=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    text=st.text(max_size=8),
)
@settings(max_examples=PATTERN_EXAMPLES)
def test_any_text_is_a_pattern_or_says_why_not(sqlite: sqlite3.Connection, glob: str, text: str) -> None:
    """R14. Any characters, except those that no command line can hold."""
    try:
        matches = pattern.compile(glob)
    except BadPattern:
        assert "[" in glob
    else:
        text = text.replace("\0", "").encode(errors="ignore").decode()
        for topic in (text, glob):
            assert bool(matches(topic)) == globs(sqlite, glob, topic)


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("*", ["a", "a.b", "", "a/b c"], []),
        ("app.*", ["app.", "app.web", "app.web.1"], ["app", "App.web", "xapp.web"]),
        ("db.slow", ["db.slow"], ["db.slow2", "db-slow", "DB.SLOW"]),
        ("?", ["a", "é", "😀"], ["", "ab"]),
        ("[*]", ["*"], ["a", "**"]),
        ("a[?]b", ["a?b"], ["acb"]),
        ("[a-c]1", ["a1", "c1"], ["d1", "-1"]),
        ("[^a-c]1", ["d1", "-1"], ["a1"]),
        ("[]-]", ["]", "-"], ["a"]),
        ("[c-a]", ["c"], ["a", "b", "-"]),
        ("*.log*.gz", ["x.log.gz", "x.log.1.gz"], ["x.log", "log.gz"]),
        ("a**b", ["ab", "axb"], ["a"]),
    ],
)
def test_what_readme_says(glob: str, matching: list[str], others: list[str]) -> None:
    matches = pattern.compile(glob)

    assert [topic for topic in matching if not matches(topic)] == []
    assert [topic for topic in others if matches(topic)] == []


@pytest.mark.parametrize(("text", "is_name"), [("a.b c/d]^-", True), ("a*", False), ("a?", False), ("a[b]", False)])
def test_a_pattern_without_special_characters_is_a_name(text: str, is_name: bool) -> None:
    assert pattern.is_name(text) == is_name


@pytest.mark.parametrize("glob", ["[", "a[b", "[^", "[]", "[^]", "[a-", "*[*"])
def test_a_set_that_is_not_closed_is_refused(glob: str) -> None:
    with pytest.raises(BadPattern, match="the set that opens at character"):
        pattern.compile(glob)


def test_many_stars_do_not_take_for_ever() -> None:
    """The time grows with the product of the lengths, never exponentially, which would outlast the universe."""
    for glob in ("*a" * 100 + "b", "a*" * 100 + "b", "*?" * 100 + "b"):
        assert not pattern.compile(glob)("a" * 255)
