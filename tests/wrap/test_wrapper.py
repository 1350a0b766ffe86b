"""From texts to events: what each becomes, and where its topic, time, source and id come from."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.event import Event
from aggregator.json_text import MAX_DEPTH
from aggregator.wire import rules
from aggregator.wrap.framing import Part, Text
from aggregator.wrap.topic import BadTemplate, TopicTemplate
from aggregator.wrap.wrapper import Defaults, Wrapper
from tests.harness.fuzz_wrap import assert_is_kept
from tests.harness.wire import Json, event

EVENT = event("e")[:-1]
PEER = "192.0.2.1"


def wrapped(*texts: Text, topic: str = "app", id_field: str | None = None) -> list[Event]:
    return list(Wrapper(Defaults(TopicTemplate(topic), PEER, id_field)).wrap(texts))


def only(text: Text, **options: Any) -> Json:
    (found,) = wrapped(text, **options)
    assert rules.parse(found.json) == found
    return json.loads(found.json)


def payload(text: Text) -> Json:
    return only(text)["payload"]


# --- what a text becomes


@pytest.mark.parametrize("spaces", [b"", b" ", b"\t\r"])
def test_an_event_is_left_as_it_is(spaces: bytes) -> None:
    text = b'{ "topic":"t","event_id":"\\u0065","timestamp":"2026-11-22T10:00:00Z","source":"s","payload":{"n":1.10} }'

    for together in (1, 2, 100):
        assert [found.json for found in wrapped(*[spaces + text] * together)] == [text] * together
    assert only(text[:-2] + b', "level":30}')["level"] == 30


def test_events_and_other_texts_keep_their_order() -> None:
    texts = [EVENT, b"text", b'{"a":1}', EVENT, b"<13>hello", b"[" + EVENT + b',{"b":2}]', b" "]
    kinds = [found.event_id == "e" for found in wrapped(*texts)]

    assert kinds == [True, False, False, True, False, True, False]


@pytest.mark.parametrize(
    "text",
    [b'{"a":1.10,"b":-0.0,"c":1e999,"a":100000000000000000000000000000}', b"{}", b'{"cut":"\\ud83d"}',
     b'{"topic":"t","event_id":"e","timestamp":"now","source":"s","payload":{}}', b'{"events":[{"a":1}]}',
     b'{"events":[]}', b'{"events":[' + EVENT + b',{"a":1}]}', b'{"events":7}', b'{"event_id":null}',
     b'{"a":' + b"[" * (MAX_DEPTH - 2) + b"]" * (MAX_DEPTH - 2) + b"}"],
)  # fmt: skip
def test_another_object_is_the_payload_byte_for_byte(text: bytes) -> None:
    for spaces in (b"", b" "):
        (found,) = wrapped(spaces + text + spaces)
        assert found.json.endswith(b',"payload":' + text + b"}")
        assert rules.parse(found.json) == found


def test_line_feeds_between_tokens_become_blanks() -> None:
    (found,) = wrapped(b'{\n  "a":1\r\n}')
    assert found.json.endswith(b',"payload":{   "a":1\r }}')
    (found,) = wrapped(EVENT.replace(b",", b",\n"))
    assert found.json == EVENT.replace(b",", b", ")


@pytest.mark.parametrize(
    "text", [b'{"events":[' + EVENT + b"]}", b"[" + EVENT + b"]", b"[" + EVENT + b"," + EVENT + b"]"]
)
def test_a_batch_of_events_is_its_events(text: bytes) -> None:
    assert {found.json for found in wrapped(text)} == {EVENT}


def test_an_array_of_objects_is_each_of_them() -> None:
    found = wrapped(b'[{"a":1.10}, ' + EVENT + b" ,{}]")

    assert [one.json.rpartition(b'"payload":')[2] for one in found] == [b'{"a":1.10}}', b"{}}", b"{}}"]


@pytest.mark.parametrize(
    "text",
    ["text", "it's \"quoted\"", "tab\there", r"back\slash \n \xe9 \u0041", "  blanks  ", "naïve ☃ 😀", "null", "5",
     '"quoted"', "{no JSON", "[1, 2]", "[]", '[{"a":1},2]', "[[[", "escape \x1b[0m", "\0\0", "\x7f\x85", "{" * 1000,
     '{"a":' * 1000 + "1" + "}" * 1000, '{"a":NaN}', "[" + "{}," * 10_000 + "{}]", "<", "<13", "<192>hello", "<x>",
     "multi\nline"],
)  # fmt: skip
def test_any_other_text_is_the_message(text: str) -> None:
    assert payload(text.encode()) == {"message": text}


def test_what_is_not_utf_8_is_escaped_so_that_it_can_be_undone() -> None:
    assert payload(b"caf\xe9 \\ \0") == {"message": r"caf\xe9 \\ " + "\0", "escaped": True}
    assert payload(b'{"a":"\xff"}') == {"message": r'{"a":"\xff"}', "escaped": True}
    assert payload(b"<13>\xed\xa0\x80")["message"] == r"\xed\xa0\x80"


@given(st.binary())
def test_any_bytes_are_kept(text: bytes) -> None:
    assert_is_kept(text, wrapped(text))


def test_parts_say_which_text_they_are_of_and_have_its_head() -> None:
    parts = [
        Part(b"<13>Nov 28 10:00:00 web-1 app[12]: hel", 0, True),
        Part(b"lo \xff", 38, True),
        Part(b"!", 42, False),
    ]
    found = [json.loads(one.json) for one in wrapped(*parts, Part(b"next", 0, False), topic="logs.{program}")]

    assert {(one["topic"], one["source"], one["timestamp"]) for one in found[:3]} == {
        ("logs.app", "web-1", found[0]["timestamp"])
    }
    assert [one["payload"]["message"] for one in found] == ["hel", r"lo \xff", "!", "next"]
    cuts = [one["payload"]["cut"] for one in found]
    assert [(cut["offset"], cut["more"]) for cut in cuts] == [(0, True), (38, True), (42, False), (0, False)]
    assert len({cut["text"] for cut in cuts[:3]}) == 1
    assert cuts[3]["text"] != cuts[0]["text"]
    assert found[3]["topic"] == "logs.unknown"


# --- log4js


def test_log4js_events_are_put_together() -> None:
    text = (
        b'[{"startTime":"1","categoryName":"2","data":"3","level":"4","pid":7},"2026-11-28T10:00:00.000Z","default",'
        b'["5",6,"5"],{"level":20000,"levelStr":"6"},"hello","INFO"]'
    )
    found = only(text)

    assert found["timestamp"] == "2026-11-28T10:00:00.000Z"
    assert found["payload"] == {
        "startTime": "2026-11-28T10:00:00.000Z", "categoryName": "default", "data": ["hello", 6, "hello"],
        "level": {"level": 20000, "levelStr": "INFO"}, "pid": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ['[{"a":"0"},"round in a circle"]', '[{"a":"2"},"no such index"]', '[{"a":"text"},"x"]', '[{"a":"１"},"x"]',
     "[" + ",".join(f'["{n + 1}","{n + 1}"]' for n in range(40)).replace("[", '{"a":[', 1).replace("]", "]}", 1)
     + ',"doubles each time"]',
     '[{"a":"1"},' + ",".join(f'["{n + 2}"]' for n in range(300)) + ',"deep"]', '[{"a":"1"},1e999]',
     '[{"a":"1"},"used","unused"]'],
)  # fmt: skip
def test_what_only_looks_like_log4js_is_text(text: str) -> None:
    assert payload(text.encode()) == {"message": text}


# --- topic, time, source, id


@pytest.mark.parametrize(
    ("template", "text", "topic"),
    [
        ("app", b'{"program":"x"}', "app"),
        ("logs.{program}", b'{"program":"x"}', "logs.x"),
        ("logs.{program}", b"<13>Nov 28 10:00:00 web-1 cron[1]: hi", "logs.cron"),
        ("logs.{program}", b"text", "logs.unknown"),
        ("{program|app}", b"text", "app"),
        ("{program|}", b"text", "unknown"),
        ("x{program|}", b"text", "x"),
        ("{service.name}", b'{"service":{"name":"api"}}', "api"),
        ("{service.name}", b'{"service.name":"api"}', "api"),
        ("{a}.{b|c}", b'{"a":1}', "1.c"),
        ("{a}", b'{"a":1.5}', "unknown"),
        ("{a}", b'{"a":""}', "unknown"),
        ("{a}", b'{"a":"x\\u0000\\ny"}', "x\ufffd\ufffdy"),
        ("{a}", b'{"a":"\\ud83d"}', "unknown"),
        ("{a}", b'{"a":"%b"}' % (b"x" * 300), "x" * 255),
        ("{a b}", b'{"a b":"c"}', "c"),
    ],
)
def test_the_topic_is_made_by_the_template(template: str, text: bytes, topic: str) -> None:
    assert only(text, topic=template)["topic"] == topic


@pytest.mark.parametrize(
    "template", ["", "{", "}", "{}", "{a", "a}", "{{a}}", "{a|{b}}", "{|a}", "a\n", "\udcff", "x" * 256]
)
def test_a_bad_template_is_said(template: str) -> None:
    with pytest.raises(BadTemplate):
        TopicTemplate(template)


@pytest.mark.parametrize(
    "name", ["timestamp", "@timestamp", "time", "ts", "date", "written_at", "asctime", "startTime"]
)
@pytest.mark.parametrize(
    ("value", "timestamp"),
    [
        ('"2026-11-28T10:00:00.123Z"', "2026-11-28T10:00:00.123Z"),
        ('"2026-11-28T11:00:00.123456+01:00"', "2026-11-28T11:00:00.123456+01:00"),
        ('"2026-11-28 10:00:00,123 UTC"', "2026-11-28T10:00:00.123Z"),
        ("1795860000", "2026-11-28T10:00:00.000000+00:00"),
        ("1795860000.25", "2026-11-28T10:00:00.250000+00:00"),
        ("1795860000123", "2026-11-28T10:00:00.123000+00:00"),
        ("1795860000123456", "2026-11-28T10:00:00.123456+00:00"),
        ("1795860000123456789", "2026-11-28T10:00:00.123456+00:00"),
    ],
)
def test_the_time_is_found_under_the_usual_names(name: str, value: str, timestamp: str) -> None:
    assert only(f'{{"{name}":{value}}}'.encode())["timestamp"] == timestamp


@pytest.mark.parametrize(
    "value", ["0.35", "12", "null", "true", '"noon"', '""', "[]", "1e30", "1e999", "-5", '"2026-02-30"']
)
def test_what_is_no_time_is_passed_over(value: str) -> None:
    text = f'{{"timestamp":{value},"ts":1795860000}}'
    assert only(text.encode())["timestamp"] == "2026-11-28T10:00:00.000000+00:00"
    received = datetime.fromisoformat(only(f'{{"time":{value}}}'.encode())["timestamp"])
    assert abs(datetime.now(UTC) - received) < timedelta(minutes=2)


@pytest.mark.parametrize("name", ["source", "hostname", "host", "serverName", "logsource"])
def test_the_source_is_found_under_the_usual_names(name: str) -> None:
    assert only(f'{{"{name}":"web-1"}}'.encode())["source"] == "web-1"
    for value in ("null", "{}", '""', '"a\\u0000"', '"\\ud83d"', f'"{"x" * 256}"', "1.5"):
        assert only(f'{{"{name}":{value}}}'.encode())["source"] == PEER


def test_equal_texts_are_not_duplicates() -> None:
    for text in (b"text", b'{"a":1}', b"<13>hello"):
        ids = [found.event_id for found in wrapped(*[text] * 300)]
        assert len(set(ids)) == 300
        assert {(uuid.UUID(one).version, uuid.UUID(one).variant) for one in ids} == {(4, uuid.RFC_4122)}


def test_a_field_may_be_the_id() -> None:
    assert only(b'{"id":"x"}', id_field="id")["event_id"] == "x"
    assert only(b'{"trace":{"id":7}}', id_field="trace.id")["event_id"] == "7"
    for text in (b"text", b"{}", b'{"id":1.5}', b'{"id":""}', b'{"id":"\\n"}', b'{"id":"%b"}' % (b"x" * 256)):
        assert uuid.UUID(only(text, id_field="id")["event_id"])
