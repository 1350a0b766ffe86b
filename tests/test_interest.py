"""What a reader wants: topics by patterns and shard, events by source and content."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.wire import interest as interest_module
from aggregator.wire.interest import KEPT, KNOWN_TOPICS, MAX_PATTERNS, Interest, interest_in
from aggregator.wire.pattern import BadPattern


def event(**fields: Any) -> bytes:
    return json.dumps({"topic": "t", "source": "web-1", "payload": {"text": "hello"}, **fields}).encode()


def test_a_topic_is_wanted_if_any_pattern_matches() -> None:
    interest = Interest(("app.*", "db.slow"))

    assert [topic for topic in ("app.web", "db.slow", "db.fast", "app") if interest.wants_topic(topic)] == [
        "app.web",
        "db.slow",
    ]


def test_as_many_patterns_as_a_command_may_have() -> None:
    interest = Interest(tuple(f"{number}.*" for number in range(MAX_PATTERNS)))

    assert interest.wants_topic(f"{MAX_PATTERNS - 1}.a")
    assert not interest.wants_topic(f"{MAX_PATTERNS}.a")


@given(topic=st.text(min_size=1), count=st.integers(1, 20))
def test_a_topic_is_in_exactly_one_shard(topic: str, count: int) -> None:
    topic = topic.encode(errors="ignore").decode()
    wanting = [one for one in range(1, count + 1) if Interest(("*",), shard=(one, count)).wants_topic(topic)]

    assert wanting == [crc32(topic.encode()) % count + 1]


@given(
    patterns=st.lists(st.text("ab*", min_size=1, max_size=3), min_size=1, max_size=3).map(tuple),
    readable=st.lists(st.text("ab*", min_size=1, max_size=3), max_size=3).map(tuple),
    topic=st.text("ab", min_size=1, max_size=4),
)
def test_what_may_not_be_read_is_not_wanted(patterns: tuple[str, ...], readable: tuple[str, ...], topic: str) -> None:
    free, limited = Interest(patterns), Interest(patterns, readable=readable)

    assert limited.wants_topic(topic) == (free.wants_topic(topic) and Interest(readable).wants_topic(topic))
    assert not limited.all_topics
    assert limited != free


def test_names_are_known_as_names() -> None:
    assert Interest(("a", "b c")).names == ("a", "b c")
    assert Interest(("a", "b*")).names is None


@pytest.mark.parametrize(
    ("interest", "all_topics"),
    [
        (Interest(("*",)), True),
        (Interest(("a", "*")), True),
        (Interest(("*",), source="s"), True),
        (Interest(("*",), shard=(1, 2)), False),
        (Interest(("?*",)), False),
    ],
)
def test_whether_every_topic_is_wanted(interest: Interest, all_topics: bool) -> None:
    assert interest.all_topics == all_topics


@pytest.mark.parametrize(
    ("source", "json", "wanted"),
    [
        ("web-1", event(), True),
        ("web", event(), False),
        ("web-1", event(source="x", payload={"source": "web-1"}), False),
        ("wéb", event(source="wéb"), True),  # json.dumps has written it with an escape
        ('a"b', event(source='a"b'), True),
        ("web-1", b'{"source":"x","source":"web-1","payload":{}}', True),  # the last of two counts
        ("web-1", b'{"source":"web-1","source":"x","payload":{}}', False),
        ("web-1", b'{"source":"web\\u002d1","n":1e999,"payload":{}}', True),
    ],
)
def test_the_source_is_exact_however_it_is_spelled(source: str, json: bytes, wanted: bool) -> None:
    assert Interest(("*",), source=source).wants_event(json) == wanted


@pytest.mark.parametrize(
    ("contains", "json", "wanted"),
    [
        ("hello", event(), True),
        ("Hello", event(), False),
        ('"text": "hello"', event(), True),
        ("é", b'{"x":"\xc3\xa9"}', True),
        ("é", b'{"x":"\\u00e9"}', False),  # bytes, as they were sent
    ],
)
def test_what_it_contains_is_looked_for_in_the_bytes(contains: str, json: bytes, wanted: bool) -> None:
    interest = Interest(("*",), contains=contains)

    assert interest.wants_event(json) == wanted
    assert interest.needle == contains.encode()


def test_source_and_content_must_both_hold() -> None:
    interest = Interest(("*",), source="web-1", contains="hello")

    assert interest.wants_event(event())
    assert not interest.wants_event(event(source="web-2"))
    assert not interest.wants_event(event(payload={}))


def test_what_is_remembered_is_bounded() -> None:
    """I6: whatever topics there are."""
    interest = Interest(("a*",))
    for number in range(3 * KNOWN_TOPICS):
        assert interest.wants_topic(f"a{number}")
        assert not interest.wants_topic(f"b{number}")

    assert len(interest._known) <= KNOWN_TOPICS


def test_equal_interests_are_one_object_as_long_as_they_are_used() -> None:
    first = interest_in(("shared*",), "s")
    assert interest_in(("shared*",), "s") is first
    assert interest_in(("shared*",), "t") != first
    assert Interest(("shared*",), "s") == first
    gone = weakref.ref(first)
    del first
    for number in range(KEPT):
        interest_module.interest_in((f"other{number}*",))
    gc.collect()
    assert gone() is None, "those that nobody uses are forgotten in the end"


def test_a_bad_pattern_is_refused_again_and_again() -> None:
    for _ in range(2):
        with pytest.raises(BadPattern):
            interest_in(("a", "[b"))
