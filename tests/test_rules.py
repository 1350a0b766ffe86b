"""What an event is, as a table: what is accepted, and what is rejected, with which code and why."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.event import Event
from aggregator.json_text import MAX_DEPTH
from aggregator.wire import Code, Rejection, rules
from aggregator.wire.rules import is_date_time, parse, parse_plain

GOOD = {"topic": "t", "event_id": "e", "timestamp": "2026-11-22T10:00:00Z", "source": "s", "payload": {}}


def line(**changes: Any) -> bytes:
    """A good event with some fields changed; a field set to ... is left out."""
    return json.dumps({name: value for name, value in {**GOOD, **changes}.items() if value is not ...}).encode()


def refusal(text: bytes) -> Rejection:
    """The rejection of this line as a whole."""
    found = parse(text)
    assert isinstance(found, Rejection)
    return found


def test_a_valid_event_keeps_its_key_and_its_bytes() -> None:
    text = b'{ "event_id" : "\\u0065\\n1", "topic":"t", "timestamp":"2026-11-22T10:00:00Z","source":"s","payload":{} }'
    text = text.replace(b"\\n", b"")

    assert parse(text) == Event.of("t", "e1", text)


def test_a_missing_payload_counts_as_an_empty_one_and_the_event_is_kept_as_it_was_sent() -> None:
    text = line(payload=...)

    assert parse(text) == Event.of("t", "e", text)
    assert parse(b"[" + text + b"]") == [Event.of("t", "e", text)]
    assert parse_plain([text] * 2) is None, "it is rare: no work in the way of the others"


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"topic": ...}, "topic: missing, expected a string"),
        ({"topic": 7}, "topic: expected a string, got a number"),
        ({"topic": None}, "topic: expected a string, got null"),
        ({"topic": True}, "topic: expected a string, got a boolean"),
        ({"topic": []}, "topic: expected a string, got an array"),
        ({"topic": ""}, "topic: expected 1 to 255 characters, got 0"),
        ({"topic": "x" * 256}, "topic: expected 1 to 255 characters, got 256"),
        ({"topic": "a\nb"}, "topic: control character U+000A at character 2"),
        ({"event_id": "a\x00"}, "event_id: control character U+0000 at character 2"),
        ({"event_id": "\x7f"}, "event_id: control character U+007F at character 1"),
        ({"source": "\x85"}, "source: control character U+0085 at character 1"),
        ({"event_id": 2**64 - 1}, "event_id: expected a string, got a number"),
        ({"event_id": ...}, "event_id: missing, expected a string"),
        ({"source": ...}, "source: missing, expected a string"),
        ({"source": {}}, "source: expected a string, got an object"),
        ({"timestamp": ...}, "timestamp: missing, expected a string"),
        ({"timestamp": 1790000000}, "timestamp: expected a string, got a number"),
        ({"timestamp": "yesterday"}, "timestamp: expected an ISO 8601 date and time, got 'yesterday'"),
        ({"topic": "a\ud83d"}, "topic: half of a surrogate pair U+D83D at character 2"),
        ({"event_id": "\ude42\ud83d"}, "event_id: half of a surrogate pair U+DE42 at character 1"),
        ({"source": "\udfff"}, "source: half of a surrogate pair U+DFFF at character 1"),
        (
            {"timestamp": "2026-11-22\ud83d10:00"},
            "timestamp: expected an ISO 8601 date and time, got '2026-11-22\\ud83d10:00'",
        ),
        ({"payload": None}, "payload: expected an object, got null"),
        ({"payload": "text"}, "payload: expected an object, got a string"),
        ({"payload": []}, "payload: expected an object, got an array"),
    ],
)
def test_a_bad_field_is_named(changes: dict[str, Any], detail: str) -> None:
    rejection = refusal(line(**changes))

    assert (rejection.code, rejection.detail) == (Code.BAD_EVENT, detail)


def test_a_refusal_names_the_key_where_it_could_be_read() -> None:
    assert (refusal(line(payload=1)).topic, refusal(line(payload=1)).event_id) == ("t", "e")
    assert (refusal(line(topic=1)).topic, refusal(line(topic="x" * 300)).topic) == (None, None)
    assert (refusal(line(topic="\ud83d")).topic, refusal(line(topic="\ud83d")).event_id) == (None, "e")


@pytest.mark.parametrize("name", ["topic", "event_id", "source"])
@pytest.mark.parametrize(
    "value", ["x" * 255, "é" * 255, "with space", "\u00a0", "\u200b", "日本語", "'\"\\", "🙂" * 255]
)
def test_names_of_any_printable_or_foreign_characters_are_taken(name: str, value: str) -> None:
    event = parse(line(**{name: value}))

    assert isinstance(event, Event)
    assert getattr(event, name, value) == value


def test_other_top_level_fields_are_kept() -> None:
    text = line(level=30, tags=["a"], nested={"x": None}, **{"\ud83d": "\ud83d"})

    assert parse(text) == Event.of("t", "e", text)


DATE_TIMES = [
    # RFC 3339.
    ("2026-11-22T10:00:00Z", True),
    ("2026-11-22T10:00:00z", True),
    ("2026-11-22t10:00:00Z", True),
    ("2026-11-22 10:00:00Z", True),
    ("2026-11-22T10:00:00.1Z", True),
    ("2026-11-22T10:00:00.123456789+05:30", True),
    ("2026-11-22T10:00:00-00:00", True),
    ("2026-11-22T10:00:00+23:59", True),
    ("2024-02-29T10:00:00Z", True),
    ("0001-01-01T00:00:00Z", True),
    ("9999-12-31T23:59:59.999999Z", True),
    ("2016-12-31T23:59:60Z", True),
    ("2016-12-31T23:59:60.5+00:00", True),
    ("2017-01-01T01:59:60+02:00", True),
    ("2016-12-31T18:29:60-05:30", True),
    ("2016-12-31t23:59:60z", True),
    # Other accepted forms.
    ("2026-11-22 10:00:00", True),
    ("2026-11-22T10:00", True),
    ("2026-11-22T10:00Z", True),
    ("2026-11-22T10:00:00,1Z", True),
    ("2026-11-22T10:00:00-0530", True),
    ("2026-11-22T10:00:00+05", True),
    ("2026-11-22T10:00:00 +02:00", True),
    ("2026-11-22T10:00:00.123", True),
    ("2016-12-31T23:59:60", True),
    ("20261122T100000Z", True),
    ("20261122T100000.5+0100", True),
    ("2026-W47-7T10:00:00Z", True),
    ("2026W477T100000Z", True),
    # Not both a date and a time, or one that does not exist.
    ("2026-11-22", False),
    ("10:00:00", False),
    ("T10:00:00Z", False),
    ("2026-13-22T10:00:00Z", False),
    ("2026-11-31T10:00:00Z", False),
    ("2026-02-29T10:00:00Z", False),
    ("2026-00-01T10:00:00Z", False),
    ("2026-W54-1T10:00:00Z", False),
    ("2026-11-22T24:00:00Z", False),
    ("2026-12-31T24:00:00Z", False),
    ("2026-12-31 24:00:00", False),
    ("20261231T240000Z", False),
    ("2026-11-22T24:00:01Z", False),
    ("2026-11-22T25:00:00Z", False),
    ("2026-11-22T10:61:00Z", False),
    ("2026-11-22T10:00:61Z", False),
    ("2026-11-22T10:00:00+24:00", False),
    ("2026-11-22T10:00:00+01:60", False),
    ("0000-01-01T00:00:00Z", False),
    ("2026-W00-1T10:00:00Z", False),
    ("2026-W47-8T10:00:00Z", False),
    # A second 60 that does not end a UTC day.
    ("2026-11-22T10:30:60Z", False),
    ("2026-11-22T10:59:60Z", False),
    ("2016-12-31T23:59:60+01:00", False),
    ("2016-12-31T23:58:60Z", False),
    ("2016-12-31T23:59:60.Z", False),
    # A fraction without digits, or of something other than seconds.
    ("2026-11-22T10:00:00.Z", False),
    ("2026-11-22T10:00:00.", False),
    ("2026-11-22T10:00:00,+01:00", False),
    ("2026-11-22T10:00:00. 1Z", False),
    ("2026-11-22T10:00.5Z", False),
    # Forms that are not accepted, although Python accepts some of them.
    ("2026-11-22T10", False),
    ("2026-11-22T10Z", False),
    ("2026-11-22T10:", False),
    ("2026-11-22T10:Z", False),
    ("2026-11-22T10:00:Z", False),
    ("2026-11-22T10:00:00:00", False),
    ("2026-11-22T10:0000", False),
    ("2026-11-22T1000:00", False),
    ("2026-11-22T10:00:00.123456 789Z", False),
    ("2026-11-22T10:00:00.1234567x", False),
    ("2026-11-22T10:00:00+01:00:00", False),
    ("2026-11-22T10:00:00+01.5", False),
    ("2026-11-22T10:00:00  Z", False),
    ("2026-11-22T10:00:00ZZ", False),
    ("2026-W47T10:00:00Z", False),
    ("2026-w47-7T10:00:00Z", False),
    ("2026-11T10:00:00Z", False),
    ("2026-1122T10:00:00Z", False),
    ("2026-326T10:00:00Z", False),
    ("2026326T100000Z", False),
    ("2026-11-22x10:00:00Z", False),
    ("2026-11-22_10:00:00Z", False),
    ("2026-11-22T10:00:00Zulu", False),
    ("2026-11-22T10:00:00 UTC", False),
    ("2026-11-22T10:00:00+01:00[Europe/Berlin]", False),
    ("2026-11-22T10:00:00Z[Europe/Berlin]", False),
    ("2026-11-22T10:00:00+1:00", False),
    ("2026-11-22 10:00:00 AM", False),
    ("2026/11/22 10:00:00", False),
    ("22.11.2026 10:00:00", False),
    ("22/Nov/2026:10:00:00 +0000", False),
    ("Nov 22 10:00:00", False),
    ("Sun, 22 Nov 2026 10:00:00 GMT", False),
    ("1795341600", False),
    ("1795341600.123456", False),
    ("-2026-11-22T10:00:00Z", False),
    ("+2026-11-22T10:00:00Z", False),
    ("26-11-22T10:00:00Z", False),
    (" 2026-11-22T10:00:00Z", False),
    ("2026-11-22T10:00:00Z ", False),
    ("2026-11-22T10:00:00Z\n", False),
    ("2026-11-22T10:00:00Z\n2026-11-22T10:00:00Z", False),
    ("2026-11-22T10:00:00\u200bZ", False),
    ("２０２６-11-22T10:00:00Z", False),
    ("2026-11-22T1０:00:00Z", False),
    ("2026-11-22\ud83d10:00:00Z", False),
    ("2026-11-22T10:00:00\ud83d", False),
    ("2026-11-22T10:00:00." + "1" * 60 + "Z", False),
    ("", False),
    ("now", False),
]


@pytest.mark.parametrize(("text", "good"), DATE_TIMES)
def test_timestamps(text: str, good: bool) -> None:
    assert is_date_time(text) is good
    together = parse_plain([line(timestamp=text)] * 2)
    assert good or together is None


def two_digits(most: int) -> st.SearchStrategy[str]:
    return st.integers(0, most).map(lambda number: f"{number:02}")


@settings(max_examples=1000)
@given(
    day=st.tuples(st.sampled_from(["2026", "2024", "1999"]), two_digits(13), two_digits(32)),
    clock=st.tuples(two_digits(24), two_digits(60), two_digits(59)),
    fraction=st.from_regex(r"([.,][0-9]{1,9})?", fullmatch=True),
    zone=st.sampled_from(["", "Z", "+01:00", "-0530", "+23:59"]),
    hyphen=st.sampled_from("-_"),
)
def test_a_timestamp_is_good_if_python_can_read_it(
    day: tuple[str, ...], clock: tuple[str, ...], fraction: str, zone: str, hyphen: str
) -> None:
    text = f"{hyphen.join(day)}T{':'.join(clock)}{fraction}{zone}"
    try:
        datetime.fromisoformat(text)
        good = clock[0] < "24"  # some versions of Python accept 24:00
    except ValueError:
        good = False

    assert is_date_time(text) is good
    assert (parse_plain([line(timestamp=text)]) is not None) is good


@pytest.mark.parametrize(
    ("text", "code", "detail"),
    [
        (b"{", Code.BAD_JSON, "unexpected end of data at character 2"),
        (b'{"a":1,}', Code.BAD_JSON, "trailing comma is not allowed at character 7"),
        (b'{"a":01}', Code.BAD_JSON, "number with leading zero is not allowed at character 6"),
        (b'{"a":NaN}', Code.BAD_JSON, None),
        (b'{"a":Infinity}', Code.BAD_JSON, None),
        (b"{'a':1}", Code.BAD_JSON, None),
        (b'{"a":"\\ud800"}', Code.BAD_EVENT, "topic: missing, expected a string"),
        (b'{"a":"\\ud800","b":01}', Code.BAD_JSON, None),
        (b'{"a":"\\ud800",}', Code.BAD_JSON, None),
        (b'{"events":[],"\\ud83d":1}', Code.BAD_EVENT, "'\\ud83d': a batch object holds nothing but events"),
        (b'{"events":[],"events":[]}', Code.BAD_EVENT, "events: given more than once"),
        (b'{"events":[],"ev\\u0065nts":[]}', Code.BAD_EVENT, "events: given more than once"),
        (b'{"a":"x\ty"}', Code.BAD_JSON, None),
        (b'{"a":"x\x00y"}', Code.BAD_JSON, None),
        (b'{"a":"\xff"}', Code.BAD_JSON, "not valid UTF-8 at byte 7"),
        (b'{"a":1}{"b":2}', Code.BAD_JSON, None),
        (b'{"a":1e400,"b":01}', Code.BAD_JSON, None),
        (b"[" * 100_000, Code.TOO_DEEP, "nested deeper than 250 levels"),
        (b"{}", Code.BAD_EVENT, "topic: missing, expected a string"),
        (b'{"events":{}}', Code.BAD_EVENT, "events: expected an array, got an object"),
        (b'{"events":[],"more":1}', Code.BAD_EVENT, "'more': a batch object holds nothing but events"),
    ],
)
def test_a_line_that_is_no_event_and_no_batch(text: bytes, code: Code, detail: str | None) -> None:
    rejection = refusal(text)

    assert rejection.code == code
    assert detail is None or rejection.detail == detail


def nested(levels: int) -> bytes:
    """A good event nested this deep: the event itself, its payload, and arrays."""
    arrays = levels - 2
    return line().replace(b'"payload": {}', b'"payload": {"a":' + b"[" * arrays + b"]" * arrays + b"}")


def test_nesting_is_limited() -> None:
    assert isinstance(parse(nested(MAX_DEPTH)), Event)
    for levels in (MAX_DEPTH + 1, 300, 1000):
        assert refusal(nested(levels)).code == Code.TOO_DEEP


def test_too_deep_an_event_is_named_where_its_key_could_be_read() -> None:
    assert refusal(nested(MAX_DEPTH + 1)) == Rejection(Code.TOO_DEEP, "nested deeper than 250 levels", "t", "e")


def test_that_a_field_is_bad_is_said_before_that_it_is_too_deep() -> None:
    assert refusal(nested(MAX_DEPTH + 1).replace(b'"source": "s"', b'"source": 1')).code == Code.BAD_EVENT


@pytest.mark.parametrize("text", [b"[" * 1024 + b"]" * 1024, b'{"events":' + b"[" * 1000 + b"]" * 1000 + b"}"])
def test_a_batch_of_nothing_but_nesting_is_too_deep(text: bytes) -> None:
    """As a whole, or as its one member: Python 3.11's scanner gives up earlier than that of later versions."""
    found = parse(text)
    if isinstance(found, list):
        (found,) = found
    assert isinstance(found, Rejection)
    assert found.code == Code.TOO_DEEP


def test_a_repeated_name_hides_no_nesting() -> None:
    """The stored text has both members, and a program that parses a reply reads both."""
    hidden = nested(MAX_DEPTH + 1)[:-1] + b',"payload":{}}'
    assert refusal(hidden).code == Code.TOO_DEEP
    assert parse_plain([hidden]) is None
    _, bad = parsed_batch(b"[" + line() + b"," + hidden + b"]")
    assert isinstance(bad, Rejection)


@pytest.mark.parametrize("odd", ['"\\ud83d"', "1e999"])
def test_nesting_is_limited_for_what_only_one_decoder_takes(odd: str) -> None:
    for levels, kind in ((MAX_DEPTH, Event), (MAX_DEPTH + 1, Rejection), (900, Rejection)):
        text = nested(levels)[:-1] + b',"odd":' + odd.encode() + b"}"
        assert isinstance(parse(text), kind), levels


def test_brackets_inside_strings_are_not_nesting() -> None:
    text = line(payload={"text": "[{" * 1000 + '\\"' + "[" * 500})

    assert isinstance(parse(text), Event)


@pytest.mark.parametrize(
    "number",
    [
        "123456789012345678901234567890",
        "1.10",
        "-0.0",
        "1e400",
        "-1E+999",
        "9" * 5000,
        "1e-999",
        "18446744073709551615",
    ],
)
def test_any_number_is_taken_with_its_digits(number: str) -> None:
    text = line(payload={"n": "?"}).replace(b'"?"', number.encode())

    assert parse(text) == Event.of("t", "e", text)


@pytest.mark.parametrize("text", ["cut \\ud83d", "\\ude42", "\\ud83d\\ud83d\\ude42", "\\ud83d\\\\"])
def test_half_of_a_surrogate_pair_is_taken_as_it_was_sent(text: str) -> None:
    for payload in (f'{{"m":"{text}"}}', f'{{"{text}":[]}}', f'{{"n":1e999,"m":["{text}"]}}'):
        sent = line(payload="?").replace(b'"?"', payload.encode())
        named = line(event_id="a"), line(event_id="b", topic="u")
        batch = b"[" + named[0] + b"," + sent + b"," + named[1] + b"]"

        assert parse(sent) == Event.of("t", "e", sent)
        assert parse_plain([sent]) is None
        assert parsed_batch(batch) == [Event.of("t", "a", named[0]), parse(sent), Event.of("u", "b", named[1])]


@pytest.mark.parametrize("name", ["topic", "event_id", "source", "timestamp"])
def test_half_of_a_surrogate_pair_in_a_name_harms_that_event_alone(name: str) -> None:
    good, bad, other = parsed_batch(b"[" + b",".join([line(), line(**{name: "a\ud83d"}), line(event_id="f")]) + b"]")

    assert isinstance(good, Event)
    assert isinstance(bad, Rejection)
    assert bad.code == Code.BAD_EVENT
    assert bad.detail.startswith(name)
    assert isinstance(other, Event)


def test_a_huge_number_hides_no_fault() -> None:
    assert refusal(line(topic=1).replace(b'{"topic": 1', b'{"topic": 1e999')).detail.startswith(
        "topic: expected a string"
    )
    assert refusal(b'{"a":1e999,"b":"\\ud83"}').code == Code.BAD_JSON


@pytest.mark.parametrize("bad", ["1.5.5", "--5", "1e5e5", "01", "1.", "+1", ".5", "1e", "0x1", "nul"])
def test_a_huge_number_makes_no_bad_one_good(bad: str) -> None:
    text = line(payload={"a": "?", "b": "!"}).replace(b'"?"', b"1e999").replace(b'"!"', bad.encode())

    assert refusal(text).code == Code.BAD_JSON
    assert refusal(b"[" + text + b"]").code == Code.BAD_JSON


def test_a_huge_number_before_an_open_string_is_judged_in_linear_time() -> None:
    """When it was quadratic, this took an hour."""
    assert refusal(b'[1e999,"' + b'\\"' * 500_000).code == Code.BAD_JSON


def parsed_batch(text: bytes) -> list[Event | Rejection]:
    found = parse(text)
    assert isinstance(found, list)
    return found


def test_a_batch_has_a_bounded_number_of_members() -> None:
    assert refusal(b"[" + b"0," * 10_000 + b"0]").detail == "events: at most 10000 in a batch, got 10001"


def test_of_a_repeated_name_the_last_counts() -> None:
    text = line()[:-1] + b',"topic":"last"}'

    assert parse(text) == Event.of("last", "e", text)


@pytest.mark.parametrize("form", ["[%s]", '{"events":[%s]}', " [ %s ] ".strip(), '{"ev\\u0065nts" : [%s]}'])
def test_each_member_of_a_batch_keeps_its_bytes(form: str) -> None:
    members = [line(event_id="a"), b'{ "x" : [1.10, "]"] }', line(event_id="b", payload={"n": 10**30})]
    text = form.encode() % b" , ".join(members)

    first, bad, last = parsed_batch(text)

    assert first == Event.of("t", "a", members[0])
    assert isinstance(bad, Rejection)
    assert bad.code == Code.BAD_EVENT
    assert last == Event.of("t", "b", members[2])


def test_an_empty_batch_is_a_batch() -> None:
    assert parse(b"[]") == parse(b"[ ]") == parse(b'{"events":[]}') == []


def test_a_too_deep_member_does_not_harm_its_neighbours() -> None:
    good, bad = parsed_batch(b"[" + line() + b"," + nested(MAX_DEPTH + 1) + b"]")

    assert isinstance(good, Event)
    assert isinstance(bad, Rejection)
    assert bad.code == Code.TOO_DEEP


@pytest.mark.parametrize(
    ("member", "detail"),
    [
        (b"null", "expected an object, got null"),
        (b"true", "expected an object, got a boolean"),
        (b"7", "expected an object, got a number"),
        (b'"text"', "expected an object, got a string"),
        (b"[]", "expected an object, got an array"),
        (b"{}", "topic: missing, expected a string"),
        (b'{"events":[]}', "topic: missing, expected a string"),
    ],
)
def test_a_member_that_is_no_event_is_named(member: bytes, detail: str) -> None:
    assert parsed_batch(b"[" + member + b"]") == [Rejection(Code.BAD_EVENT, detail)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=5), st.sampled_from([None, 1]))
def test_batches_are_cut_where_json_says(payloads: list[Any], indent: int | None) -> None:
    texts = [json.dumps({**GOOD, "payload": payload}, indent=indent, ensure_ascii=False) for payload in payloads]
    try:
        whole = ("[" + ",".join(texts) + "]").encode()
    except UnicodeEncodeError:  # hypothesis likes lone surrogates, which a UTF-8 line cannot hold
        return

    assert parse(whole) == [Event.of("t", "e", text.encode()) for text in texts]


@given(st.binary(max_size=80) | json_values.map(lambda value: json.dumps(value).encode()))
def test_whatever_arrives_is_an_event_a_batch_or_a_refusal(text: bytes) -> None:
    found = parse(text)

    if isinstance(found, Rejection):
        assert found.code in {Code.BAD_JSON, Code.BAD_EVENT, Code.TOO_DEEP}
    else:
        assert isinstance(found, Event | list)


def is_event(fields: dict[str, Any], depth: int) -> bool:
    """The rules implemented again, one at a time, as README states them."""

    def is_name(value: Any) -> bool:
        return isinstance(value, str) and 1 <= len(value) <= 255 and not any(map(is_control, value))

    return (
        all(is_name(fields.get(name)) for name in ("topic", "event_id", "source"))
        and is_date_time(fields.get("timestamp"))
        and isinstance(fields.get("payload", {}), dict)
        and depth <= MAX_DEPTH
    )


def is_control(character: str) -> bool:
    return ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0


odd_values = (
    st.sampled_from(
        [None, True, 7, 1.5, "", "x" * 255, "x" * 256, "é" * 255, "🙂" * 256, [], ["T"] * 20, [""], {}, {"a": 1}]
    )
    | st.text("aé\x00\n\x1f\x7f\x85\u00a0\u200b\u2028", max_size=4)
    | st.integers(250, 260).map(lambda length: "y" * length)
)
odd_timestamps = (
    st.sampled_from([text for text, _ in DATE_TIMES])
    | st.text("0123456789-:TtZz ., +W", min_size=9, max_size=30)
    | st.tuples(st.sampled_from([text for text, _ in DATE_TIMES]), st.integers(0, 30), st.text(max_size=2)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
    )
    | odd_values
)


@settings(max_examples=1000)
@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "topic": st.just("t") | odd_values,
            "event_id": st.just("e") | odd_values,
            "source": st.just("s") | odd_values,
            "timestamp": st.just(GOOD["timestamp"]) | odd_timestamps,
            "payload": st.just({}) | odd_values,
        },
    ),
    plain=st.sets(st.sampled_from(list(GOOD))),
    depth=st.sampled_from([0, MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1]),
)
def test_an_event_is_judged_by_the_rules_alone_or_together_with_others(
    fields: dict[str, Any], plain: set[str], depth: int
) -> None:
    fields |= {name: GOOD[name] for name in plain}
    if depth:
        arrays = depth - 2
        fields["payload"] = {"deep": json.loads("[" * arrays + "]" * arrays)}
    text = json.dumps(fields).encode()
    alone, together = parse(text), parse_plain([text] * 2)

    assert isinstance(alone, Event if is_event(fields, depth) else Rejection)
    if isinstance(alone, Event):
        assert (alone.topic, alone.event_id, alone.json) == (fields["topic"], fields["event_id"], text)
    assert together is None or list(together) == [alone] * 2


_PLAIN = line(event_id="plain")


@given(
    st.lists(
        st.sampled_from(
            [
                _PLAIN,
                line(level=30),
                line(topic="a b", timestamp="2026-11-22 10:00:00+01:00"),
                line(topic=""),
                line(topic="t" * 256),
                line(source="a\x07"),
                line(source="no-break\u00a0space"),
                line(event_id=1),
                line(event_id=["e"]),
                line(timestamp="2026-11-22"),
                line(timestamp="2026-11-22T10:00:60Z"),
                line(timestamp="2026-11-22T25:00:00Z"),
                line(timestamp=["2"] * 11),
                line(timestamp={}),
                line(payload=[]),
                line(payload=...),
                line(payload={"deep": json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)}),
                line(payload={"wide": [[]] * MAX_DEPTH}),
                line(payload={"long": "x" * 1000}),
                line(events=[]),
                b"[" + _PLAIN + b"]",
                b'{"events":[' + _PLAIN + b"]}",
                b" " + _PLAIN,
                _PLAIN + b" ",
                _PLAIN + b"," + _PLAIN,
                _PLAIN[:-1],
                b'{"topic":',
                b"{}",
                b"[]",
                b"1e400",
                _PLAIN.replace(b"{}", b'{"n":1e400}'),
                b"STATS",
                b"",
                None,
            ]
        ),
        max_size=4,
    )
)
def test_judged_together_lines_are_what_they_are_one_by_one(lines: list[bytes | None]) -> None:
    together = parse_plain(lines)

    if together is None:
        assert lines.count(_PLAIN) < len(lines) or not lines, "plain events are seen to be plain"
    else:
        assert list(together) == [parse(one) for one in lines if one]


def test_topics_that_come_and_go_stay_themselves_and_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_KNOWN_TOPICS", 10)
    monkeypatch.setattr(rules, "_topics", {})
    for first in range(0, 100, 5):
        names = [f"topic {number}" for number in range(first, first + 8)] * 2
        found = parse_plain([line(topic=name, event_id=str(number)) for number, name in enumerate(names)])
        assert found is not None
        assert found.topics == names
        assert len(rules._topics) <= 10 + 8
