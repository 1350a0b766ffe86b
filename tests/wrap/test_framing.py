"""From bytes to texts on the wrap port: every framing, detected from the first bytes, however the reads cut them."""

from __future__ import annotations

import pickle
import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.wrap.framing import Framer, Part, Text
from aggregator.wrap.recognition import CONTINUED_BYTES, Foreign, Framing
from tests.harness.fuzz_wrap import LIMIT, WRAPPED_SEEDS, assert_nothing_is_gone, check, texts_of
from tests.harness.mutated_lines import SEEDS, TOKENS

LOG4JS = b'[{"startTime":"1","data":"2","pid":7},"2026-11-28T10:00:00.000Z",["3",5],"hello"]'

STREAMS: list[tuple[bytes, Framing, list[bytes]]] = [
    (b"one\ntwo\n", Framing.LINES, [b"one", b"two"]),
    (b"one\r\ntwo\r\n", Framing.LINES, [b"one", b"two"]),
    (b"one\ntwo", Framing.LINES, [b"one", b"two"]),
    (b"\xef\xbb\xbfone\n", Framing.LINES, [b"one"]),
    (b"one\r\r\n\n", Framing.LINES, [b"one\r", b""]),
    (b'{"a":1}\n{"b":2}\n', Framing.LINES, [b'{"a":1}', b'{"b":2}']),
    (b'{"a":1} and text\n', Framing.LINES, [b'{"a":1} and text']),
    (b'{no JSON\n{"a":1}{"b":2}\n', Framing.LINES, [b"{no JSON", b'{"a":1}{"b":2}']),
    (b'{"a":"\\\n"}\n', Framing.LINES, [b'{"a":"\\', b'"}']),
    (b"{\n}\n", Framing.LINES, [b"{", b"}"]),
    (b"[42] started\n", Framing.LINES, [b"[42] started"]),
    (b'[{"a":1},{"b":2}\n', Framing.ARRAY, [b'{"a":1}', b'{"b":2}']),
    (b'[{"a":1}]\n[{"b":2}]\n', Framing.LINES, [b'[{"a":1}]', b'[{"b":2}]']),
    (b'[{"a":1} text\n', Framing.LINES, [b'[{"a":1} text']),
    (b"\0\0one\ntwo\n", Framing.LINES, [b"\0\0one", b"two"]),
    (b"5 apples\n", Framing.LINES, [b"5 apples"]),
    (b"12345678901 <13>\n", Framing.LINES, [b"12345678901 <13>"]),
    (b"<13>one\n<13>two\0x\n", Framing.LINES, [b"<13>one", b"<13>two\0x"]),
    (b"one\0two\0", Framing.NUL, [b"one", b"two"]),
    (b'{"a":1}\0{"b":2}\0', Framing.NUL, [b'{"a":1}', b'{"b":2}']),
    (b"<11>one\n  two\0<14>three\0", Framing.NUL, [b"<11>one\n  two", b"<14>three"]),
    (b"<11>one\n  two\n\n three\0", Framing.NUL, [b"<11>one\n  two\n\n three"]),
    (b"7 <13>one7 <13>a\nb9 <13>12 34", Framing.OCTETS, [b"<13>one", b"<13>a\nb", b"<13>12 34"]),
    (b"7 <13>one\n7 <13>two\n", Framing.OCTETS, [b"<13>one", b"<13>two"]),
    (b'7 {"a":1}7 {"b":2}', Framing.OCTETS, [b'{"a":1}', b'{"b":2}']),
    (b"9 <13>cut", Framing.OCTETS, [b"<13>cut"]),
    (b'{"a":1}{"b":"}{"}{"c":[{}]}', Framing.OBJECTS, [b'{"a":1}', b'{"b":"}{"}', b'{"c":[{}]}']),
    (b'{"a":"\\"}"}{"b":"\\\\"} \n\t{}', Framing.OBJECTS, [b'{"a":"\\"}"}', b'{"b":"\\\\"}', b"{}"]),
    (b'{"a":1}', Framing.OBJECTS, [b'{"a":1}']),
    (b'[{"a":1},\n{"b":2},\n{"c":3}]\n', Framing.ARRAY, [b'{"a":1}', b'{"b":2}', b'{"c":3}']),
    (b'[\n {"a":1}\n,{"b":2', Framing.ARRAY, [b'{"a":1}', b'{"b":2']),
    (b'[{"a":1}][{"b":2}]', Framing.ARRAY, [b'{"a":1}', b'{"b":2}']),
    (LOG4JS + b"__LOG4JS__" + LOG4JS + b"__LOG4JS__", Framing.LOG4JS, [LOG4JS, LOG4JS]),
    (LOG4JS + b"\n" + LOG4JS + b"\n", Framing.LINES, [LOG4JS, LOG4JS]),
    (b'{"a":1}__LOG4JS__{"b":2}__LOG4JS__', Framing.LOG4JS, [b'{"a":1}', b'{"b":2}']),
    (b"text_____LOG4JS__text__LOG4JS_", Framing.LOG4JS, [b"text___", b"text__LOG4JS_"]),
]

BROKEN: list[tuple[bytes, list[bytes]]] = [
    (b'{"a":1}{"b":2}text\nmore\n', [b'{"a":1}', b'{"b":2}', b"text", b"more"]),
    (b'{"a":1}{"b":"\n{"c":3}\n', [b'{"a":1}', b'{"b":"', b'{"c":3}']),
    (b'[{"a":1},{"b":2},3,{"c":4}]\n', [b'{"a":1}', b'{"b":2}', b'3,{"c":4}]']),
    (b"7 <13>onetwo\nthree\n", [b"<13>one", b"two", b"three"]),
]
"""Streams that break off the framing they begin with: from there on they are lines."""

LOG_RECORD = {"name": "app", "msg": "hello", "levelno": 20}
PICKLED = pickle.dumps(LOG_RECORD, 1)

FOREIGN: list[tuple[bytes, Foreign]] = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Foreign.TLS),
    (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", Foreign.HTTP),
    (b"POST /logs HTTP/1.1\r\n\r\n{}", Foreign.HTTP),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n<13>hello\n", Foreign.PROXY),
    (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", Foreign.PROXY),
    (struct.pack(">L", len(PICKLED)) + PICKLED, Foreign.PICKLE),
    (struct.pack(">L", 300) + pickle.dumps(LOG_RECORD, 4), Foreign.PICKLE),
    (b"\x93\xa3app\xcei\x29\xb4\x80\x81\xa3msg\xa2hi", Foreign.MSGPACK),  # [tag, time, record]
    (b"\x92\xa3app\xdc\x00\x10", Foreign.MSGPACK),  # [tag, entries]
    (b"\x92\x92\xd7\x00i\x29\xb4\x80\0\0\0\0\x80\x81", Foreign.MSGPACK),  # Fluent Bit: [[time, metadata], record]
    (b"\x92\xd7\x00i\x29\xb4\x80", Foreign.MSGPACK),
    (zlib.compress(b"hello", wbits=31), Foreign.GZIP),
]


def contents(texts: list[Text]) -> list[bytes]:
    assert all(isinstance(text, bytes) for text in texts)
    return [text for text in texts if isinstance(text, bytes)]


@pytest.mark.parametrize(("stream", "framing", "texts"), STREAMS)
def test_a_framing_is_told_by_the_first_bytes(stream: bytes, framing: Framing, texts: list[bytes]) -> None:
    for size in (len(stream), 1, 2, 3, 7):
        found, said = texts_of([stream[at : at + size] for at in range(0, len(stream), size)])
        assert (contents(found), said) == (texts, framing)


@pytest.mark.parametrize(("stream", "texts"), BROKEN)
def test_a_stream_that_breaks_its_framing_is_lines_from_there_on(stream: bytes, texts: list[bytes]) -> None:
    for size in (len(stream), 1, 2, 3, 7):
        found, said = texts_of([stream[at : at + size] for at in range(0, len(stream), size)])
        assert (contents(found), said) == (texts, Framing.LINES)


@pytest.mark.parametrize(("stream", "foreign"), FOREIGN)
def test_what_holds_no_text_is_named(stream: bytes, foreign: Foreign) -> None:
    for size in (len(stream), 1, 2, 3, 7):
        assert texts_of([stream[at : at + size] for at in range(0, len(stream), size)]) == ([], foreign)


@pytest.mark.parametrize(("spare", "framing"), [(0, Framing.LINES), (2, Framing.NUL)])
def test_a_message_of_many_lines_is_waited_for_up_to_a_size(spare: int, framing: Framing) -> None:
    stream = b"<11>one\n" + b"x" * (CONTINUED_BYTES - spare) + b"\0"
    for size in (len(stream), 1000, 1):
        framer = Framer(1 << 20)
        for at in range(0, len(stream), size):
            framer.feed(stream[at : at + size])
        assert framer.framing is framing


@pytest.mark.parametrize(
    "start", [b"\x16", b"\x1f", b"\0\0", b"\r\n", b"\x93", b"7", b"7 <1", b"[", b'[{"a":1},', b"\xef"]
)
def test_a_start_that_could_be_more_is_a_text_if_nothing_follows(start: bytes) -> None:
    found, _ = texts_of([start])
    assert_nothing_is_gone(start, found)


@pytest.mark.parametrize("ended", [b"\n", b"\0", b"__LOG4JS__"])
def test_a_text_that_is_too_long_comes_in_parts(ended: bytes) -> None:
    text = "é".encode() * LIMIT + b"x"
    found, _ = texts_of([b"first" + ended + text + ended + b"last" + ended])

    assert (found[0], found[-1]) == (b"first", b"last")
    parts = [part for part in found if isinstance(part, Part)]
    assert b"".join(part.content for part in parts) == text
    assert [part.offset for part in parts] == [0, LIMIT, 2 * LIMIT]
    assert [part.more for part in parts] == [True, True, False]


def test_parts_end_between_characters_where_they_can() -> None:
    text = b"x" + "😀".encode() * LIMIT
    found, _ = texts_of([text + b"\n"])
    for part in found:
        assert isinstance(part, Part)
        assert part.content.decode()
    binary = b"\x80" * 3 * LIMIT
    found, _ = texts_of([binary + b"\n"])
    assert [len(part.content) for part in found if isinstance(part, Part)] == [LIMIT] * 3


@pytest.mark.parametrize("spare", [b"", b"\r", b"\r\r", b"x", b"x\r"])
def test_a_line_as_long_as_allowed_is_no_part(spare: bytes) -> None:
    line = b"y" * LIMIT + spare
    for pieces in ([line + b"\nz\n"], [b"%c" % byte for byte in line + b"\nz\n"]):
        found, _ = texts_of(pieces)
        assert found[-1] == b"z"
        is_whole = spare in (b"", b"\r")
        assert (found[0] == b"y" * LIMIT) is is_whole
        assert isinstance(found[0], Part) is not is_whole


@pytest.mark.parametrize("stream", [b"<13>hello\n", b'{"a":1}', b'[{"a":1}', b"<11>one\n  tw"])
def test_a_whole_text_does_not_wait_for_ever_to_be_told_from_others(stream: bytes) -> None:
    framer = Framer(LIMIT)
    assert framer.feed(stream) == []
    assert framer.settle() != []
    assert framer.settle() == []


def test_what_does_not_end_in_time_is_a_part_and_may_go_on() -> None:
    for before in (b"", b"first\n"):
        framer = Framer(LIMIT)
        framer.feed(before + b"begun")
        assert framer.unfinished
        assert framer.start == b"begun"
        assert framer.flush()[-1] == Part(b"begun", 0, more=True)
        assert framer.feed(b" and ended\nnext\n") == [Part(b" and ended", 5, more=False), b"next"]
        assert not framer.unfinished


@pytest.mark.parametrize(
    ("start", "begun", "rest"),
    [
        (b"3 <1>", b"9 <13>", b"hello"),
        (b'{"a":1}{"b":2}', b'{"c":"', b'3"}'),
        (b"one\0", b"be", b"gun\0"),
    ],
)
def test_after_a_part_every_framing_finds_the_end(start: bytes, begun: bytes, rest: bytes) -> None:
    framer = Framer(LIMIT)
    framer.feed(b"9 <13>hello" if begun.startswith(b"9") else start)
    framer.feed(begun)
    (part,) = framer.flush()
    assert isinstance(part, Part)
    (last,) = framer.feed(rest)
    assert isinstance(last, Part)
    assert (last.offset, last.more) == (len(part.content), False)
    assert framer.feed(b"") == []
    assert not framer.unfinished


@pytest.mark.parametrize(
    "stream",
    [b"<13>a\n" + b"\n" * (1 << 20), b"<13>a" + b"\nb" * (1 << 19) + b"\0", b"[" + b" " * (1 << 20),
     b"{}" + b" " * (1 << 20), b"{" * (1 << 20), b'{"' + b"\\" * (1 << 20), b"[{}," + b"\n" * (1 << 20),
     b"1" * (1 << 20), b"{}" * (1 << 19), b"<13>a" + b"\r\n" * (1 << 19),
     b"1 <1>" + b"\n" * (1 << 20), b"\0" * (1 << 20), b"__LOG4JS_" * (1 << 17), b"a__LOG4JS__" * (1 << 16)],
    ids=lambda stream: repr(stream[:10]),
)  # fmt: skip
@pytest.mark.timeout(60)
def test_no_stream_is_looked_at_again_and_again(stream: bytes) -> None:
    """Each stream takes milliseconds, or hours if the work grows with the square of its size."""
    framer = Framer(1 << 20)
    framer.feed(stream)
    framer.finish()
    framer = Framer(1 << 20)
    for at in range(0, len(stream), 100):
        framer.feed(stream[at : at + 100])


_PIECES = st.lists(
    st.sampled_from([*WRAPPED_SEEDS, *SEEDS, *TOKENS, b"7 <13>one", b"x" * LIMIT, b"__LOG4JS__", b'{"a":', b'"}'])
    | st.binary(max_size=4),
    max_size=12,
).map(b"".join)


@given(cut=st.binary(min_size=4, max_size=4), stream=_PIECES)
def test_any_stream_in_any_reads(cut: bytes, stream: bytes) -> None:
    check(cut + stream)


def test_mutated_streams_in_any_reads() -> None:
    random_ = random.Random(17)
    for _ in range(1000):
        stream = bytearray(random_.choice(WRAPPED_SEEDS) * random_.choice((1, 2, 100)))
        for _ in range(random_.choice((0, 1, 1, 3))):
            at = random_.randrange(len(stream) + 1)
            stream[at : at + random_.randrange(3)] = random_.choice((*TOKENS, *WRAPPED_SEEDS, b"__LOG4JS__"))
        check(random_.randbytes(4) + bytes(stream))
