"""The topics that a permission covers, and the readers' patterns that it covers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.access.topics import KNOWN_TOPICS, BadGlob, Topics
from aggregator.wire import pattern

GLOB = st.text("ab.*", min_size=1, max_size=5)
NAME = st.text("ab.", min_size=1, max_size=6)
PATTERN = st.lists(st.sampled_from(["a", "b", ".", "*", "?", "[ab]", "[^a]", "[]]", "]", "^"]), min_size=1).map("".join)


@pytest.mark.parametrize(
    ("globs", "inside", "outside"),
    [
        ([], [], ["a", ""]),
        (["*"], ["a", "a.b", "a\nb"], []),
        (["web.*", "audit"], ["web.", "web.a", "web.a.b", "audit"], ["web", "audit.a", "xweb.a", "AUDIT"]),
        (["*.log"], [".log", "a.log", "a.b.log"], ["a.logs", "log"]),
        (["a.*.z"], ["a.b.z", "a..z"], ["a.z", "a.b.zz"]),
        (["a+b", "(x)", "{y}"], ["a+b", "(x)", "{y}"], ["aab", "x"]),
    ],
)
def test_topics_by_globs(globs: list[str], inside: list[str], outside: list[str]) -> None:
    topics = Topics(globs)

    assert [name for name in inside + outside if topics.has(name)] == inside
    assert topics.has_all(inside)
    assert not any(topics.has_all([*inside, name]) for name in outside)


@pytest.mark.parametrize("glob", ["", "x" * 256, "a?", "[ab]", "a]", "a\nb", "\ud83d"])
def test_what_is_no_glob_of_a_permission(glob: str) -> None:
    with pytest.raises(BadGlob):
        Topics([glob])


def test_topics_that_were_asked_for_are_remembered_up_to_a_number() -> None:
    topics = Topics(["a*"])
    for start in range(0, 3 * KNOWN_TOPICS, 100):
        assert topics.has_all([f"a{number}" for number in range(start, start + 100)])
        assert not topics.has_all([f"a{start}", f"b{start}"])

    assert len(topics._known) <= KNOWN_TOPICS
    assert not topics.has_all(["b1"])


@given(st.lists(GLOB, max_size=3), st.lists(st.lists(NAME, max_size=4), max_size=4))
def test_all_is_each(globs: list[str], asked: list[list[str]]) -> None:
    topics = Topics(globs)
    for names in asked:
        assert topics.has_all(names) == all(map(topics.has, names))


@pytest.mark.parametrize(
    ("globs", "covered", "not_covered"),
    [
        (["*"], ["*", "a", "[", "?"], []),
        (["web.*"], ["web.*", "web.a", "web.a.*", "web.?", "web.[ab]", "web."], ["*", "web", "we*", "[w]eb.a", "db"]),
        (["a", "b"], ["a", "b"], ["[ab]", "*", "?"]),
        (["*a*"], ["a", "*a", "?a?"], ["[ab]", "*[a]*", "*b*"]),
    ],
)
def test_covered_patterns(globs: list[str], covered: list[str], not_covered: list[str]) -> None:
    topics = Topics(globs)
    patterns = [one for one in covered + not_covered if _is_pattern(one)]

    assert [one for one in patterns if topics.cover([one])] == [one for one in covered if _is_pattern(one)]


def _is_pattern(text: str) -> bool:
    try:
        pattern.compile(text)
    except pattern.BadPattern:
        return False
    return True


@given(st.lists(GLOB, max_size=3), PATTERN.filter(_is_pattern), st.lists(NAME, max_size=20))
def test_what_a_covered_pattern_matches_is_among_the_topics(globs: list[str], wide: str, names: list[str]) -> None:
    topics = Topics(globs)
    if topics.cover([wide]):
        matches = pattern.compile(wide)
        assert [name for name in names if matches(name) and not topics.has(name)] == []
