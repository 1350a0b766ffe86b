"""Bytes to messages to events, without a server: every mode, any split, and what is not Forward."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import tracemalloc
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.event import Events
from aggregator.wire import rules
from aggregator.wire.forward import NotForward, entries, values
from aggregator.wire.forward.events import Conversion, Fields
from aggregator.wire.forward.framing import Message, Splitter
from tests.harness.forward import event_time, forward, pack

MAX_BYTES: Final = 1 << 20
MAX_RECORD_BYTES: Final = 1 << 16
TIME: Final = event_time(1, 2)
squeeze = partial(gzip.compress, mtime=0)  # without the time, so that the bytes are always the same
PACKED: Final = b"".join(pack([TIME, {"n": n}]) for n in range(3))


ANY_FIELDS: Final = Fields()


def convert(
    stream: bytes, *, reads: Sequence[int] = (), fields: Fields = ANY_FIELDS, max_bytes: int = MAX_BYTES
) -> list[Conversion]:
    """Convert every chunk of a stream that arrives in pieces of these sizes and then the rest. Raises NotForward."""
    splitter = Splitter(max_bytes)
    made = []
    for size in [*reads, len(stream)]:
        piece, stream = stream[:size], stream[size:]
        for message in splitter.feed(piece):
            conversion = begin(message, fields, max_bytes)
            while not conversion.proceed(2, 100):
                pass
            made.append(conversion)
    if splitter.broken:
        raise splitter.broken
    return made


def begin(message: Message, fields: Fields = ANY_FIELDS, max_bytes: int = MAX_BYTES) -> Conversion:
    chunk = entries.read(message, max_bytes, MAX_RECORD_BYTES)
    return Conversion(chunk, "192.0.2.1", fields, max_bytes * entries.MAX_GROWTH)


def converted(message: Any, fields: Fields = ANY_FIELDS) -> list[dict[str, Any]]:
    """The events of one message."""
    (conversion,) = convert(pack(message), fields=fields)
    return [json.loads(line) for line in conversion.events.json]


MODES: Final = {
    "Message": ["t", TIME, {"n": 0}, {"chunk": "c"}],
    "Forward": ["t", [[TIME, {"n": n}] for n in range(3)], {"chunk": "c"}],
    "PackedForward": ["t", PACKED, {"chunk": "c", "size": 3}],
    "PackedForward of old clients": ["t", PACKED.decode(errors="surrogateescape"), {"chunk": "c"}],
    "CompressedPackedForward": ["t", squeeze(PACKED), {"chunk": "c", "compressed": "gzip"}],
    "gzip members": ["t", squeeze(PACKED[:7]) + squeeze(PACKED[7:]), {"chunk": "c", "compressed": "gzip"}],
    "Message with metadata": ["t", [TIME, {}], {"n": 0}, {"chunk": "c"}],
    "entries with metadata": ["t", [[[TIME, {}], {"n": n}] for n in range(3)], {"chunk": "c"}],
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_says_the_same(mode: str) -> None:
    (conversion,) = convert(pack(MODES[mode]))
    assert conversion.chunk.name == "c"
    found = [json.loads(line) for line in conversion.events.json]
    assert found == [
        {
            "topic": "t", "event_id": f"c.{n}", "timestamp": "1970-01-01T00:00:01.000000002Z",
            "source": "192.0.2.1", "payload": {"n": n},
        }
        for n in range(1 if mode.startswith("Message") else 3)
    ]  # fmt: skip


@given(reads=st.lists(st.integers(1, 40), max_size=60))
def test_any_split_of_the_stream_gives_the_same(reads: list[int]) -> None:
    stream = b"\xc0".join(map(pack, MODES.values()))  # with heartbeats between them
    assert [one.events for one in convert(stream, reads=reads)] == [one.events for one in convert(stream)]


LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(max_size=20)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=12))
)  # fmt: skip
NAMES = st.text(max_size=3) | st.integers(-9, 9) | st.binary(max_size=3)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(tag=st.text() | st.binary(max_size=300), time=VALUES, record=VALUES, chunk=st.none() | st.text() | st.binary())
def test_whatever_is_well_formed_becomes_an_event_that_is_valid(tag: Any, time: Any, record: Any, chunk: Any) -> None:
    (conversion,) = convert(pack([tag, [[time, record]], {"chunk": chunk}]))
    assert len(conversion.events) == 1
    (event,) = conversion.events
    assert rules.parse(event.json) == event


@given(stream=st.binary(max_size=200), reads=st.lists(st.integers(1, 20), max_size=10))
def test_any_bytes_at_all_are_messages_or_say_why_not(stream: bytes, reads: list[int]) -> None:
    def outcome(reads: list[int]) -> list[Events] | str:
        try:
            return [one.events for one in convert(stream, reads=reads)]
        except NotForward as error:
            return str(error)

    assert type(outcome(reads)) is type(outcome([]))


@given(damage=st.integers(0, 80), byte=st.integers(0, 255))
def test_one_wrong_byte_is_understood_or_named(damage: int, byte: int) -> None:
    message = bytearray(pack(MODES["CompressedPackedForward"]))
    message[damage % len(message)] = byte
    with contextlib.suppress(NotForward):  # and no other exception
        convert(bytes(message))


# --- the rules


@pytest.mark.parametrize(
    ("tag", "topic", "kept"),
    [
        ("app.web", "app.web", None),
        ("größe 1", "größe 1", None),
        ("", "untagged", ""),
        ("a\nb\x00", "a_b_", "a\nb\x00"),
        (b"a\xff\\", "a_\\", "a\\xff\\\\"),
        ("x" * 300, "x" * 255, "x" * 300),
    ],
)
def test_a_tag_becomes_a_topic(tag: str | bytes, topic: str, kept: str | None) -> None:
    (event,) = converted([tag, 1, {}])
    assert (event["topic"], event.get("tag")) == (topic, kept)


@pytest.mark.parametrize(
    ("chunk", "event_id"),
    [
        ("p8n9gmxTQVC8/nh2wlKKeQ==", "p8n9gmxTQVC8/nh2wlKKeQ==.0"),
        (b"\x01\x02", f"{hashlib.sha256(bytes([1, 2])).hexdigest()}.0"),
        ("x" * 201, f"{hashlib.sha256(b'x' * 201).hexdigest()}.0"),
        ("", f"{hashlib.sha256().hexdigest()}.0"),
    ],
)
def test_a_chunk_names_its_events(chunk: str | bytes, event_id: str) -> None:
    (event,) = converted(["t", 1, {}, {"chunk": chunk}])
    assert event["event_id"] == event_id


def test_without_a_chunk_every_message_has_ids_of_its_own() -> None:
    message = pack(["t", [[1, {}], [1, {}]]])
    ids = [event_id for one in convert(message * 2) for event_id in one.events.event_ids]
    assert len(set(ids)) == 4
    assert [event_id.rpartition(".")[2] for event_id in ids] == ["0", "1", "0", "1"]


@pytest.mark.parametrize(
    ("record", "event_id", "source"),
    [
        ({"id": "a", "host": "web1"}, "a", "web1"),
        ({"id": 7, "host": ""}, "7", "192.0.2.1"),
        ({"id": "a\nb", "host": ["x"]}, "c.0", "192.0.2.1"),
        ({"id": True}, "c.0", "192.0.2.1"),
    ],
)
def test_fields_that_are_named_are_id_and_source(record: dict[str, Any], event_id: str, source: str) -> None:
    (event,) = converted(["t", 1, record, {"chunk": "c"}], Fields("id", "host"))
    assert (event["event_id"], event["source"], event["payload"]) == (event_id, source, record)


@pytest.mark.parametrize(
    ("time", "timestamp"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_795_848_505.25, "2026-11-28T06:48:25.250000000Z"),
        (event_time(2**32 - 1, 999_999_999), "2106-02-07T06:28:15.999999999Z"),
        (msgpack.Timestamp(-1, 5), "1969-12-31T23:59:59.000000005Z"),
        ([event_time(1), {"k": "v"}], "1970-01-01T00:00:01Z"),
    ],
)
def test_times(time: Any, timestamp: str) -> None:
    (event,) = converted(["t", [[time, {}]]])
    assert event["timestamp"] == timestamp
    assert "time" not in event
    assert event.get("metadata") == ({"k": "v"} if type(time) is list else None)


@pytest.mark.parametrize(
    ("time", "kept"),
    [
        (None, None),
        ("2026-11-28", "2026-11-28"),
        (2**63, 2**63),
        (event_time(1, 1_000_000_000), {"ext": 0, "hex": "000000013b9aca00"}),
        (float("nan"), "NaN"),
    ],
)
def test_what_is_no_time_is_kept_beside_the_time_of_receipt(time: Any, kept: Any) -> None:
    (event,) = converted(["t", [[time, {}]]])
    assert event["timestamp"] > "2026"
    assert event["time"] == kept


@pytest.mark.parametrize(
    ("record", "payload"),
    [
        ({"a": 2**64 - 1, "b": [None, 1.5, "é\x00"]}, {"a": 2**64 - 1, "b": [None, 1.5, "é\x00"]}),
        ({"a": b"text"}, {"a": "text"}),
        ({"a": float("inf"), "b": float("-inf"), "c": float("nan")}, {"a": "Infinity", "b": "-Infinity", "c": "NaN"}),
        ({2: "a", None: "b", True: "c", (1, 2): "d"}, {"2": "a", "null": "b", "true": "c", "[1,2]": "d"}),
        ({"a": msgpack.ExtType(7, b"\xab")}, {"a": {"ext": 7, "hex": "ab"}}),
        ({"a": event_time(1, 2)}, {"a": "1970-01-01T00:00:01.000000002Z"}),
        ("text", {"record": "text"}),
        (None, {"record": None}),
    ],
)
def test_values(record: Any, payload: Any) -> None:
    (event,) = converted(["t", [[1, record]]])
    assert event["payload"] == payload
    assert "escaped" not in event


def test_what_is_not_utf8_is_readable_and_nothing_is_lost() -> None:
    (event,) = converted(["t", [[1, {"bad": b"caf\xe9", "path": "C:\\new"}]]])
    assert event["payload"] == {"bad": "caf\\xe9", "path": "C:\\\\new"}
    assert event["escaped"] is True


@given(texts=st.lists(st.binary(), min_size=1))
def test_what_is_escaped_can_be_read_back(texts: list[bytes]) -> None:
    (event,) = converted(["t", [[1, {"texts": texts}]]])
    found = event["payload"]["texts"]
    if event.get("escaped"):
        unescaped = [text.encode().decode("latin-1").encode("latin-1") for text in found]
        found = [_unescape(text) for text in unescaped]
    else:
        found = [text.encode() for text in found]
    assert found == texts


def _unescape(text: bytes) -> bytes:
    """Unescape as the rule says: a doubled backslash is one, and \\xNN is a byte."""
    out, index = bytearray(), 0
    while index < len(text):
        if text[index : index + 2] == b"\\\\":
            out += b"\\"
            index += 2
        elif text[index : index + 2] == b"\\x":
            out.append(int(text[index + 2 : index + 4], 16))
            index += 4
        else:
            out.append(text[index])
            index += 1
    return bytes(out)


def test_a_name_that_comes_twice_is_numbered() -> None:
    """Fluent Bit sends such maps when a filter adds a field that the record already has."""
    record = b"\x83" + pack("time") + pack(1) + pack("time") + pack(2) + pack("time (2)") + pack(3)
    (conversion,) = convert(b"\x93" + pack("t") + pack(1) + record)
    assert json.loads(conversion.events.json[0])["payload"] == {"time": 1, "time (2)": 2, "time (2) (2)": 3}


# --- what is refused


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "HTTP"),
        (b'{"topic":1}\n', "JSON"),
        (b"<14>hello", "syslog"),
        (b"\x16\x03\x01", "TLS"),
        (b"PROXY TCP4 ", "PROXY"),
        (b"\x1f\x8b\x08", "gzip"),
        (pack(7), "no Forward message begins like this"),
        (pack([1]), "an array of 1"),
        (pack(["PING", "a", "b", "c", "", ""]), "an array of 6"),
        (pack(["t", 1]), "an array of 2"),
        (b"\x93\xa1t\x01\xc1", "not MessagePack"),
        (pack([7, 1, {}]), "the tag is not text"),
        (pack(["t", [1, 2]]), "an entry is not an array"),
        (pack(["t", [["x"]]]), "an entry is not an array"),
        (pack(["t", PACKED[:-1]]), "cut short"),
        (pack(["t", squeeze(PACKED), {}]), "an entry is not an array"),
        (pack(["t", PACKED, {"compressed": "gzip"}]), "not gzip"),
        (pack(["t", squeeze(PACKED)[:-9], {"compressed": "gzip"}]), "cut short"),
        (pack(["t", PACKED, {"compressed": "zstd"}]), "only gzip"),
        (pack(["t", PACKED, {"fluent_signal": 1}]), "metrics, not logs"),
        (pack(["t", PACKED, {"fluent_signal": [1]}]), "it forwards an array, not logs"),
        (pack([nested(900), PACKED]), "the tag is not text but an array"),
        (pack(["t", [nested(900)]]), "an entry is not an array of a time and a record but an array"),
        (pack(["t", PACKED, {"compressed": nested(900)}]), "compressed as 'an array'"),
        (forward("t", [{"a": nested(300)}]), "nested deeper"),
        (pack(["t", 1, {"a": nested(249)}]), "nested deeper"),
        (forward("t", [{"a": "x" * (MAX_RECORD_BYTES + 1)}]), "a record is longer"),
        (pack(["t", 1, {"a": [0] * 2 * MAX_RECORD_BYTES}]), "a record is longer"),
        (forward("t", ["x" * 1000] * 1100), "a message is longer"),
        (b"\xdd\xff\xff\xff\xff", "an array of 4294967295"),
    ],
    ids=itertools.count(),
)
def test_what_is_not_taken_is_named(stream: bytes, why: str) -> None:
    with pytest.raises(NotForward, match=why):
        convert(stream)
    with pytest.raises(NotForward):
        convert(stream, reads=[1] * min(len(stream), 100))


def test_a_message_that_never_ends_is_given_up_at_its_limit() -> None:
    splitter = Splitter(1000)
    splitter.feed(b"\x92\xa1t\xc6\x7f\xff\xff\xff")
    for _ in range(10):
        assert splitter.feed(bytes(100)) == []
    assert "longer than 1000 bytes" in str(splitter.broken)
    assert not splitter.unfinished


SMALL: Final = 1 << 14


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ([1, {}], "its events take more than"),
        ([1, {"a": "x" * 10_000}], "its entries unpack to more than"),
    ],
)
def test_a_bomb_is_given_up_at_its_limit(entry: Any, why: str) -> None:
    bomb = squeeze(pack(entry) * (SMALL * entries.MAX_GROWTH // len(pack(entry)) + 1))
    assert len(bomb) < SMALL
    with pytest.raises(NotForward, match=why):
        convert(pack(["t", bomb, {"compressed": "gzip"}]), max_bytes=SMALL)


def test_a_map_of_numbers_that_all_have_one_hash_is_read_in_time() -> None:
    many = b"\xdf" + (4000).to_bytes(4, "big") + b"".join(pack(n * (2**61 - 1) % 2**63) + b"\0" for n in range(4000))
    (conversion,) = convert(b"\x93" + pack("t") + pack(1) + many)
    assert len(json.loads(conversion.events.json[0])["payload"]) == 4000


# --- what a few bytes may cost


def begun(stream: bytes) -> Conversion:
    """The only chunk of a stream, before any of its events is made."""
    (message,) = Splitter(MAX_BYTES).feed(stream)
    return begin(message)


@pytest.mark.parametrize("nils", [1, 15, 4096])
def test_heartbeats_between_messages_are_passed_over(nils: int) -> None:
    heartbeats = b"\xc0" * nils
    stream = heartbeats + forward("t", [{"n": 1}]) + heartbeats + forward("t", [{"n": 2}]) + heartbeats
    assert [json.loads(one.events.json[0])["payload"] for one in convert(stream)] == [{"n": 1}, {"n": 2}]


def test_what_has_to_be_converted_value_by_value_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "MOST_VALUES", 100)
    (conversion,) = convert(forward("t", [{"a": [None] * 1000}]))
    assert json.loads(conversion.events.json[0])["payload"] == {"a": [None] * 1000}, "JSON has nil, too"
    with pytest.raises(NotForward, match="more than 100 values"):
        convert(forward("t", [{"a": [float("nan")] * 1000}]))


def test_a_chunk_of_large_events_is_converted_one_by_one() -> None:
    conversion = begun(forward("t", [{"a": "x" * 1000}] * 3))
    for made in (1, 2, 3):
        assert not conversion.proceed(50, 1000)
        assert len(conversion.events) == made
    assert conversion.proceed(50, 1000)


def test_compressed_nothing_is_looked_at_a_step_at_a_time() -> None:
    nothing = squeeze(b"") * 200
    conversion = begun(pack(["t", nothing + squeeze(PACKED), {"compressed": "gzip"}]))
    steps = itertools.takewhile(lambda _: not conversion.proceed(50, 1000), itertools.count())
    assert len(list(steps)) >= 3
    assert len(conversion.events) > 0


def test_an_event_does_not_keep_the_buffer_that_its_json_was_made_in() -> None:
    """A buffer of orjson takes some 4 KB, whatever is in it."""
    conversion = begun(forward("t", [{}] * 20_000))
    tracemalloc.start()
    try:
        assert conversion.proceed(20_001, 1 << 30)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 20_000 * 1000
