"""Members of objects as text, queries as lines, events as bytes: without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.client import query
from aggregator.client.delivered import DeliveredEvent
from aggregator.client.query import Request
from aggregator.client.read.show import Csv
from aggregator.json_text import members
from aggregator.wire import Word, delivery

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=6)
BLANKS = st.sampled_from(["", " ", "\t", " \r "])


@given(OBJECTS, BLANKS, BLANKS, st.booleans())
def test_members_are_cut_out_of_the_text(value: dict[str, Any], before: str, after: str, ascii_only: bool) -> None:
    text = json.dumps(value, separators=(f"{before},{after}", f"{after}:{before}"), ensure_ascii=ascii_only)
    text = "{" + before + text[1:-1] + after + "}"
    found = members(text)
    assert {name: json.loads(part) for name, part in found.items()} == value
    assert all(part == part.strip() for part in found.values())


def test_members_keep_every_digit_and_the_last_of_equal_names() -> None:
    text = '{"a":1.10,"b":1e400,"c":123456789012345678901234567890,"a":{"x":"\\ud83d"},"d":-0.0}'
    assert members(text) == {
        "a": '{"x":"\\ud83d"}', "b": "1e400", "c": "123456789012345678901234567890", "d": "-0.0",
    }  # fmt: skip


@given(OBJECTS, st.integers(1, 1 << 63), st.integers(0, 1 << 41))
def test_a_delivered_event_gives_back_what_was_sent(value: dict[str, Any], seq: int, received_at: int) -> None:
    sent = json.dumps({"topic": "t", **value, "seq": 5, "received_at": ',"seq":1,"received_at":""'}).encode()
    (line, _) = delivery.lines([seq], [sent], received_at).split(b"\n")
    event = DeliveredEvent(line[26:-1])
    assert event.json == sent
    assert event.seq == seq
    assert event.received_at.endswith("Z")
    assert event.line == delivery.shown(seq, sent, received_at)


@pytest.mark.parametrize(
    ("path", "cell"),
    [
        ("a", "1"),
        ("a.b.c", "whole"),
        ("o", '{"b.c":"dots","b":{"c":"nested"},"e":{}}'),
        ("o.b.c", "dots"),
        ("o.b", '{"c":"nested"}'),
        ("o.e", "{}"),
        ("o.e.x", ""),
        ("a.x", ""),
        ("n", ""),
        ("s", "null"),
        ("", ""),
        (".", ""),
        ("o.", ""),
    ],
)
def test_a_path_finds_its_value(path: str, cell: str) -> None:
    event = b'{"a":1,"a.b.c":"whole","o":{"b.c":"dots","b":{"c":"nested"},"e":{}},"n":null,"s":"null"}'
    head, row, *_ = Csv([path, "a"])([DeliveredEvent(event)]).decode().split("\n")
    assert head == f"{path},a"
    expected = '"' + cell.replace('"', '""') + '"' if '"' in cell else cell
    assert row == f"{expected},1"


def test_a_question_is_one_line() -> None:
    line = query.line(Word.EVENTS, ["a b", "it's", "since"], {"UNTIL": "NOW", "SOURCE": None, "CONTAINS": "x y"}, 7)
    assert line == b"EVENTS 'a b' 'it'\"'\"'s' '[s]ince' 7 UNTIL NOW CONTAINS 'x y'\n"
    for patterns in ([], [""], ["a", "b\nc"]):
        with pytest.raises(ValueError, match="expected"):
            query.line(Word.EVENTS, patterns, {})


def test_a_subscription_is_asked_for_again_for_what_is_left() -> None:
    request = Request(["t"], {"BEAT": 15}, since="10m", until="1h", limit=10)
    assert request.line(None) == b"SUBSCRIBE t SINCE 10m UNTIL 1h LIMIT 10 BEAT 15\n"
    assert request.line(7, events=4, elapsed_s=2.9) == b"SUBSCRIBE t AFTER 7 UNTIL 3602s LIMIT 6 BEAT 15\n"
    assert Request(["t"], {}, until="now").line("1.2", elapsed_s=61.0) == b"SUBSCRIBE t AFTER 1.2 UNTIL 61s\n"
    fixed = "2026-11-22T10:00:00Z"
    assert Request(["t"], {}, until=fixed).line(1, elapsed_s=61.0) == f"SUBSCRIBE t AFTER 1 UNTIL {fixed}\n".encode()
