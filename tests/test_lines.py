"""Bytes to lines: any split of any stream gives the same lines, and other protocols are told apart."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aggregator.wire.lines import BOM, HTTP_REPLY, TLS_REPLY, LineSplitter

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
    assert splitter.unfinished
    assert splitter.feed(b"x" * 900) == [None]
    assert not splitter.unfinished
    assert splitter.feed(b"x" * 10**6) == []
    assert not splitter.unfinished
    assert splitter.feed(b"\nnext\n") == [b"next"]


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


def test_the_tls_reply_is_a_fatal_alert() -> None:
    record_type, level, description = TLS_REPLY[0], TLS_REPLY[5], TLS_REPLY[6]

    assert (record_type, level, description) == (21, 2, 70), "alert, fatal, protocol_version (RFC 8446, section 6)"
    assert int.from_bytes(TLS_REPLY[3:5]) == len(TLS_REPLY[5:])
