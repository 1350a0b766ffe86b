"""The sans-IO protocol: any split of any stream gives the same lines; what each line is; how replies are written."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aggregator import protocol
from aggregator.event import Event, Events
from aggregator.protocol import BOM, HTTP_REPLY, TLS_REPLY, Command, LineSplitter, Rejection

LIMIT = 10


def split(pieces: list[bytes], limit: int = LIMIT) -> tuple[list[bytes | None], bytes | None]:
    splitter = LineSplitter(limit)
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    return lines + splitter.finish(), splitter.foreign_reply


@pytest.mark.parametrize(
    ("stream", "lines"),
    [
        (b"", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\r\nb\r\n", [b"a", b"b"]),
        (b"a\r\r\n", [b"a\r"]),
        (b"a\rb\n", [b"a\rb"]),
        (b"\n\r\n\n", [b"", b"", b""]),
        (b"a\nrest", [b"a", b"rest"]),
        (b"rest\r", [b"rest"]),
        (BOM + b"a\nb", [b"a", b"b"]),
        (BOM + b"\na", [b"", b"a"]),
        (b"a\n" + BOM + b"b\n", [b"a", BOM + b"b"]),
        (b"0123456789\n", [b"0123456789"]),
        (b"0123456789\r\n", [b"0123456789"]),
        (b"0123456789", [b"0123456789"]),
        (b"0123456789\r", [b"0123456789"]),
        (b"0123456789x\n", [None]),
        (b"0123456789\rx\n", [None]),
        (b"0123456789\r\r\n", [None]),
        (b"0123456789x", [None]),
        (b"0123456789xyz\na\n", [None, b"a"]),
        (b"x" * 1000 + b"\n{}\n", [None, b"{}"]),
        (b"a\n" + b"x" * 1000, [b"a", None]),
        (b"x" * 11 + b"\n" + b"y" * 11 + b"\nz", [None, None, b"z"]),
    ],
)
def test_lines(stream: bytes, lines: list[bytes | None]) -> None:
    assert split([stream]) == (lines, None)
    assert split([stream[i : i + 1] for i in range(len(stream))]) == (lines, None)


alphabet = st.sampled_from(
    [b"a", b"\n", b"\r", b"\r\n", b"0123456789", BOM, BOM[:1], b"{}", b"GET ", b"\x16", b"\x03", b" HTTP/1"]
)


@settings(max_examples=5000)
@given(st.lists(alphabet, max_size=12).map(b"".join), st.lists(st.integers(0, 60), max_size=8))
@example(BOM + b"0123456789\r\n", [1, 2, 13, 14])
@example(b"GET \r\n\x16\x03", [6])
def test_any_split_of_any_stream_gives_the_same_lines(stream: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in itertools.pairwise(bounds)]

    assert split(pieces) == split([stream])


def test_an_over_long_line_is_reported_before_it_ends_and_not_held() -> None:
    splitter = LineSplitter(1000)

    assert splitter.feed(b"x" * 900) == []
    assert splitter.feed(b"x" * 900) == [None]
    assert splitter.feed(b"x" * 10**6) == []
    assert splitter.feed(b"\nnext\n") == [b"next"]


@pytest.mark.parametrize(
    ("stream", "reply"),
    [
        (b"GET / HTTP/1.1\r\n", HTTP_REPLY),
        (b"POST /" + b"x" * 20_000, HTTP_REPLY),
        (b"PROPFIND /x HTTP/1.1\r\n", HTTP_REPLY),
        (b"PRI * HTTP/2.0\r\n", HTTP_REPLY),
        (b"\x16\x03\x01\x02\x00\x01\n\xfc\x03\x03", TLS_REPLY),
    ],
)
def test_http_and_tls_are_told_apart_and_never_read_as_lines(stream: bytes, reply: bytes) -> None:
    event = b'\r\n{"topic":"t"}\n'

    assert split([stream + event], 1000) == ([], reply)
    assert split([*(stream[i : i + 1] for i in range(len(stream))), event], 1000) == ([], reply)


@pytest.mark.parametrize(
    "stream", [b'{"topic":"t","payload":{"m":"GET /x HTTP/1.1"}}\n', b'["GET / HTTP/1.1"]\n', b'"GET / HTTP/1.1\n']
)
def test_a_line_that_quotes_http_is_not_http(stream: bytes) -> None:
    assert split([stream], 100) == ([stream[:-1]], None)


@pytest.mark.parametrize("stream", [b"EVENTS t\n", b"get\n", b"STATS\nGET / HTTP/1.1\n", b"HELP HTTP/1.1\n", b"\x16\n"])
def test_what_is_no_foreign_protocol(stream: bytes) -> None:
    assert split([stream], 100)[1] is None


def test_the_http_reply_is_well_formed() -> None:
    head, _, body = HTTP_REPLY.partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 ")
    assert f"Content-Length: {len(body)}".encode() in head


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"STATS", Command("STATS", [])),
        (b"stats", Command("STATS", [])),
        (b"EVENTS a 3 AFTER 7", Command("EVENTS", ["a", "3", "AFTER", "7"])),
        (b"event 'a topic' \"an id\"", Command("EVENT", ["a topic", "an id"])),
        (b"EVENT a\\ b ''", Command("EVENT", ["a b", ""])),
        ("EVENTS größe".encode(), Command("EVENTS", ["größe"])),
    ],
)
def test_a_letter_starts_a_command(line: bytes, command: Command) -> None:
    assert protocol.parse(line) == command


@pytest.mark.parametrize(
    ("line", "code", "detail"),
    [
        (b"EVENTS 'open", "bad_command", "no closing quotation: quote arguments as in a shell"),
        (b"EVENTS \\", "bad_command", "no escaped character: quote arguments as in a shell"),
        (b"EVENTS \xff", "bad_command", "not valid UTF-8 at byte 8"),
        (b"x" * 5000, "bad_command", "a command has at most 4096 bytes, this one 5000"),
        (b"<13>text", "bad_line", "expected {, [ or a command, got '<'"),
        (b' {"topic":"t"}', "bad_line", "expected {, [ or a command, got ' '"),
        (b"\x00", "bad_line", "expected {, [ or a command, got byte 0x00"),
        (b"\xff\xfe", "bad_line", "expected {, [ or a command, got byte 0xFF"),
        ("é".encode(), "bad_line", "expected {, [ or a command, got 'é'"),
        (b'"text"', "bad_line", "expected {, [ or a command, got '\"'"),
        (b"42", "bad_line", "expected {, [ or a command, got '4'"),
        (b"{", "bad_json", "unexpected end of data at character 2"),
    ],
)
def test_a_line_that_is_nothing_is_rejected(line: bytes, code: str, detail: str) -> None:
    assert protocol.parse(line) == Rejection(code, detail)


@given(st.binary(min_size=1, max_size=60).filter(lambda line: b"\n" not in line))
def test_every_line_is_something(line: bytes) -> None:
    assert isinstance(protocol.parse(line), Event | list | Command | Rejection)


def test_replies() -> None:
    event = Event.of("user.login", 'evt "1"', b"{}")
    rejection = Rejection("bad_event", "why", "user.login", None)

    replies = [
        protocol.stored(event, 1842),
        protocol.duplicate(event, 1842),
        protocol.rejected(rejection, 17),
        protocol.error("storage_full", "no space", event),
        protocol.error("busy", "try later"),
        protocol.ok({"pong": True}),
        protocol.batch([protocol.stored(event, 1), protocol.duplicate(event, 1)]),
    ]

    assert [protocol.encode(reply) for reply in replies] == [
        b'{"status":"stored","seq":1842,"topic":"user.login","event_id":"evt \\"1\\""}\n',
        b'{"status":"duplicate","seq":1842,"topic":"user.login","event_id":"evt \\"1\\""}\n',
        b'{"status":"rejected","code":"bad_event","detail":"why","line":17,"topic":"user.login"}\n',
        b'{"status":"error","code":"storage_full","detail":"no space","topic":"user.login","event_id":"evt \\"1\\""}\n',
        b'{"status":"error","code":"busy","detail":"try later"}\n',
        b'{"status":"ok","pong":true}\n',
        b'{"status":"batch","stored":1,"duplicate":1,"rejected":0,"error":0,"results":['
        b'{"status":"stored","seq":1,"topic":"user.login","event_id":"evt \\"1\\""},'
        b'{"status":"duplicate","seq":1,"topic":"user.login","event_id":"evt \\"1\\""}]}\n',
    ]


names = st.text(
    st.sampled_from('ab"\\/é日🙂\u00a0\u2028\u200b') | st.characters(exclude_categories=["Cc", "Cs"]),
    min_size=1,
    max_size=8,
)


@settings(max_examples=500)
@given(
    keys=st.lists(st.tuples(names | st.just("t"), names | st.just("e")), max_size=6),
    first_seq=st.integers(1, 2**62),
    older=st.dictionaries(st.integers(0, 12), st.integers(1, 2**62)),
    offset=st.integers(0, 6),
)
@example([('"', "a"), ("b", "c")], 1, {}, 0)
@example([("a", "\\")], 1, {0: 7}, 0)
def test_acks_are_encoded_as_any_other_reply(
    keys: list[tuple[str, str]], first_seq: int, older: dict[int, int], offset: int
) -> None:
    events = [Event.of(topic, event_id, b"{}") for topic, event_id in keys]

    assert protocol.encode_acks(Events.of(events), first_seq, older, offset) == b"".join(
        protocol.encode(
            protocol.duplicate(one, older[offset + i]) if offset + i in older else protocol.stored(one, first_seq + i)
        )
        for i, one in enumerate(events)
    )
