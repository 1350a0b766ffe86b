"""Bytes to lines: any split of any stream gives the same lines, and other protocols are recognized."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aggregator.wire import replies
from aggregator.wire.lines import BOM, Foreign, Framing, LineSplitter
from tests.harness.sizes import SPLIT_EXAMPLES

LIMIT = 10


def split(pieces: list[bytes], limit: int = LIMIT) -> tuple[list[bytes | None], Foreign | None]:
    splitter = LineSplitter(limit)
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    return lines + splitter.finish(), splitter.foreign


def single_bytes(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


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
    assert split(single_bytes(stream)) == (lines, None)


alphabet = st.sampled_from(
    [
        b"a", b"\n", b"\r", b"\r\n", b"0123456789", BOM, BOM[:1], b"{}", b"GET ", b"\x16", b"\x03", b" HTTP/1",
        b"PROXY ", b"TCP4", b"UNKNOWN", b" ", b"\r\n\r\n\0\r\n", b"QUIT\n",
    ]
)  # fmt: skip


@settings(max_examples=SPLIT_EXAMPLES)
@given(st.lists(alphabet, max_size=12).map(b"".join), st.lists(st.integers(0, 60), max_size=8))
@example(BOM + b"0123456789\r\n", [1, 2, 13, 14])
@example(b"GET \r\n\x16\x03", [6])
@example(b"\r\n\r\n\0\r\nQUIT\n\x21\x11", [1, 7])
@example(b"\r\n\r\n\0\r\nQUIT", [4])
def test_any_split_of_any_stream_gives_the_same_lines(stream: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in itertools.pairwise(bounds)]

    assert split(pieces) == split([stream])


def test_an_over_long_line_is_reported_before_it_ends_and_not_held() -> None:
    splitter = LineSplitter(1000)

    assert splitter.feed(b"x" * 900) == []
    assert splitter.unfinished
    assert not splitter.skipping
    assert splitter.feed(b"x" * 900) == [None]
    assert splitter.feed(b"x" * 10**6) == []
    assert splitter.skipping
    assert splitter.unfinished, "its end has not come"
    assert splitter.feed(b"\nnext\n") == [b"next"]
    assert not splitter.unfinished
    assert not splitter.skipping


@given(st.lists(st.integers(0, 30), max_size=6), st.lists(st.integers(0, 200), max_size=8))
def test_the_bytes_of_over_long_lines_are_counted(lengths: list[int], cuts: list[int]) -> None:
    stream = b"".join(b"x" * length + b"\n" for length in lengths)
    bounds = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    splitter = LineSplitter(LIMIT)
    for start, end in itertools.pairwise(bounds):
        splitter.feed(stream[start:end])

    assert splitter.skipped_bytes == sum(length for length in lengths if length > LIMIT)


@pytest.mark.parametrize(
    ("stream", "framing"),
    [
        (b'{"topic":"t"}\0{"topic":"t"}\0', Framing.NUL),
        (b'{"short_message":"x"}\0', Framing.NUL),
        (b"\xff\xfe{\0" + b"x\0" * 20, Framing.NUL),
        (b'13 {"topic":"t"}13 {"topic":"t"}', Framing.OCTETS),
        (b"57 <34>1 2026-11-22T10:00:00Z host app - - - text", Framing.OCTETS),
        (b'[{"topic":"t"},{"topic":"t"},', Framing.ARRAY),
        (b'  [\r {"topic":"t"},', Framing.ARRAY),
        (b'{"topic":"t"}{"topic":"t"}', Framing.NONE),
        (b"2026-11-22 10:00:00 {text} and no line feed", Framing.NONE),
        (b"a line\ra line\r", Framing.NONE),
    ],
)
def test_how_a_stream_without_line_feeds_seems_to_be_framed(stream: bytes, framing: Framing) -> None:
    short = LineSplitter(1000)
    short.feed(stream)
    assert short.look_at_framing() is framing

    for pieces in ([stream * 10], single_bytes(stream * 10)):
        long = LineSplitter(50)
        for piece in pieces:
            long.feed(piece)
        assert long.skipping
        assert long.framing is framing
        assert long.look_at_framing() is framing


def test_a_line_is_unfinished_until_its_end_has_come() -> None:
    splitter = LineSplitter(1000)

    assert not splitter.unfinished
    splitter.feed(b"a\nb")
    assert splitter.unfinished
    splitter.feed(b"\n")
    assert not splitter.unfinished
    splitter.feed(b"c")
    assert splitter.finish() == [b"c"]
    assert not splitter.unfinished


HEADER = b"PROXY TCP4 192.0.2.1 127.0.0.1 50000 8080\r\n"
HEADER_6 = b"PROXY TCP6 2001:db8::1 ::1 50000 8080\r\n"
HEADER_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\x7f\x00\x00\x01\xc3\x50\x1f\x90"
HEADER_2_LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"


@pytest.mark.parametrize(
    ("stream", "foreign"),
    [
        (b"GET / HTTP/1.1\r\n", Foreign.HTTP),
        (b"POST /" + b"x" * 20_000, Foreign.HTTP),
        (b"PROPFIND /x HTTP/1.1\r\n", Foreign.HTTP),
        (b"PRI * HTTP/2.0\r\n", Foreign.HTTP),
        (b"\x16\x03\x01\x02\x00\x01\n\xfc\x03\x03", Foreign.TLS),
        (HEADER, Foreign.PROXY),
        (HEADER_6, Foreign.PROXY),
        (b"PROXY UNKNOWN\r\n", Foreign.PROXY),
        (HEADER_2, Foreign.PROXY),
        (HEADER_2_LOCAL, Foreign.PROXY),
    ],
)
def test_other_protocols_are_told_apart_and_never_read_as_lines(stream: bytes, foreign: Foreign) -> None:
    event = b'\r\n{"topic":"t"}\n'

    assert split([stream + event], 1000) == ([], foreign)
    assert split([*single_bytes(stream), event], 1000) == ([], foreign)


@given(
    st.sampled_from([HEADER, HEADER_6, HEADER_2, HEADER_2_LOCAL, b"PROXY UNKNOWN\r\n"]),
    st.lists(st.integers(0, 100), max_size=10),
    st.sampled_from([b"", b'{"topic":"t"}\n', b"\n\n"]),
)
def test_a_proxy_header_is_known_however_it_is_split(header: bytes, cuts: list[int], after: bytes) -> None:
    stream = header + after
    bounds = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in itertools.pairwise(bounds) if start < end]

    assert split(pieces, 1000) == ([], Foreign.PROXY)


@pytest.mark.parametrize(
    "stream",
    [
        b'{"topic":"t","payload":{"m":"GET /x HTTP/1.1"}}\n',
        b'["GET / HTTP/1.1"]\n',
        b'"GET / HTTP/1.1\n',
        b'{"topic":"t","payload":{"m":"PROXY TCP4 "}}\n',
    ],
)
def test_a_line_that_quotes_another_protocol_is_a_line(stream: bytes) -> None:
    assert split([stream], 100) == ([stream[:-1]], None)


@pytest.mark.parametrize(
    ("stream", "lines"),
    [
        (b"EVENTS t\n", [b"EVENTS t"]),
        (b"get\n", [b"get"]),
        (b"STATS\nGET / HTTP/1.1\n", [b"STATS", b"GET / HTTP/1.1"]),
        (b"HELP HTTP/1.1\n", [b"HELP HTTP/1.1"]),
        (b"\x16\n", [b"\x16"]),
        (b"PROXY\n", [b"PROXY"]),
        (b"PROXY settings changed\n", [b"PROXY settings changed"]),
        (b"PROXY TCP4you\n", [b"PROXY TCP4you"]),
        (b"proxy tcp4 \n", [b"proxy tcp4 "]),
        (b"STATS\n" + HEADER, [b"STATS", HEADER[:-2]]),
        (b"\r\n", [b""]),
        (b"\r\n\r\n{}\n", [b"", b"", b"{}"]),
        (b"\r\n\r\n\0\r\nQUIT", [b"", b"", b"\0", b"QUIT"]),
        (b"\n" + HEADER_2[:14], [b"", b"", b"", b"\0", b"QUIT", b"!\x11"]),
    ],
)
def test_what_is_no_foreign_protocol(stream: bytes, lines: list[bytes]) -> None:
    assert split([stream], 100) == (lines, None)
    assert split(single_bytes(stream), 100) == (lines, None)


def test_a_stream_that_may_still_be_a_header_holds_no_unfinished_line() -> None:
    splitter = LineSplitter(100)
    splitter.feed(b"\r\n")

    assert not splitter.unfinished


def test_the_http_reply_is_well_formed() -> None:
    head, _, body = replies.to_foreign(Foreign.HTTP, 1).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 ")
    assert f"Content-Length: {len(body)}".encode() in head


def test_the_tls_reply_is_a_fatal_alert() -> None:
    reply = replies.to_foreign(Foreign.TLS, 1)
    record_type, level, description = reply[0], reply[5], reply[6]

    assert (record_type, level, description) == (21, 2, 70), "alert, fatal, protocol_version (RFC 8446, section 6)"
    assert int.from_bytes(reply[3:5]) == len(reply[5:])
