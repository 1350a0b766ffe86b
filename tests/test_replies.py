"""Answers to bytes: the output of every builder, literally."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aggregator.event import Event, Events
from aggregator.wire import Code, Failure, Rejection, replies
from aggregator.wire.lines import Foreign, Framing
from aggregator.wire.replies import Reply

EVENT = Event.of("user.login", 'evt "1"', b"{}")


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (
            replies.stored(EVENT, 1842),
            b'{"status":"stored","seq":1842,"topic":"user.login","event_id":"evt \\"1\\""}\n',
        ),
        (
            replies.duplicate(EVENT, 1842),
            b'{"status":"duplicate","seq":1842,"topic":"user.login","event_id":"evt \\"1\\""}\n',
        ),
        (
            replies.rejected(Rejection(Code.BAD_EVENT, "why"), 17),
            b'{"status":"rejected","code":"bad_event","detail":"why","line":17}\n',
        ),
        (
            replies.rejected(Rejection(Code.BAD_EVENT, "why", "user.login", None), 17),
            b'{"status":"rejected","code":"bad_event","detail":"why","line":17,"topic":"user.login"}\n',
        ),
        (
            replies.rejected(Rejection(Code.TOO_DEEP, "why", "t", "e"), 17),
            b'{"status":"rejected","code":"too_deep","detail":"why","line":17,"topic":"t","event_id":"e"}\n',
        ),
        (
            replies.error(replies.storage_full("no space"), EVENT),
            b'{"status":"error","code":"storage_full","detail":"no space","topic":"user.login",'
            b'"event_id":"evt \\"1\\""}\n',
        ),
        (
            replies.error(Failure(Code.BUSY, "try later")),
            b'{"status":"error","code":"busy","detail":"try later"}\n',
        ),
        (replies.ok({"pong": True}), b'{"status":"ok","pong":true}\n'),
        (
            replies.batch([replies.stored(EVENT, 1), replies.duplicate(EVENT, 1)]),
            b'{"status":"batch","stored":1,"duplicate":1,"rejected":0,"error":0,"results":['
            b'{"status":"stored","seq":1,"topic":"user.login","event_id":"evt \\"1\\""},'
            b'{"status":"duplicate","seq":1,"topic":"user.login","event_id":"evt \\"1\\""}]}\n',
        ),
        (
            replies.batch(
                [
                    replies.rejected(Rejection(Code.BAD_EVENT, "why"), 3),
                    replies.error(replies.stopping(), Event.of("t", "e", b"{}")),
                ]
            ),
            b'{"status":"batch","stored":0,"duplicate":0,"rejected":1,"error":1,"results":['
            b'{"status":"rejected","code":"bad_event","detail":"why","line":3},'
            b'{"status":"error","code":"shutting_down","detail":"the server is stopping; send this again with the same '
            b'id","topic":"t","event_id":"e"}]}\n',
        ),
        (replies.batch([]), b'{"status":"batch","stored":0,"duplicate":0,"rejected":0,"error":0,"results":[]}\n'),
    ],
)
def test_replies(reply: Reply, line: bytes) -> None:
    assert replies.encode(reply) == line


def test_the_last_reply_to_quit() -> None:
    assert replies.BYE == b'{"status":"ok","bye":true}\n'


@pytest.mark.parametrize(
    ("rejection", "code", "detail"),
    [
        (replies.too_long(100), Code.TOO_LONG, "longer than 100 bytes; skipped to the end of the line"),
        (
            replies.no_event(b"<13>text"),
            Code.BAD_LINE,
            "not an event: events begin with {, this line with '<'; HELP lists commands",
        ),
        (
            replies.no_event(b"\x1b[31m"),
            Code.BAD_LINE,
            "not an event: events begin with {, this line with byte 0x1B; HELP lists commands",
        ),
        (replies.bad_quit(), Code.BAD_COMMAND, "QUIT must stand alone on its line, in upper case"),
        (replies.no_commands_here(), Code.NOT_ALLOWED, "the silent port answers no commands"),
        (replies.long_command(10, 12), Code.BAD_COMMAND, "a command has at most 10 bytes, this one 12"),
        (replies.bad_utf8_in_command(8), Code.BAD_COMMAND, "not valid UTF-8 at byte 8"),
        (
            replies.bad_quoting("No closing quotation"),
            Code.BAD_COMMAND,
            "no closing quotation: quote arguments as in a shell",
        ),
        (replies.unknown_command("FOO"), Code.BAD_COMMAND, "unknown command FOO; HELP lists them"),
        (replies.too_many_arguments("PING"), Code.BAD_COMMAND, "too many arguments; usage: PING"),
        (replies.missing_argument("no topic", "EVENT <topic>"), Code.BAD_COMMAND, "no topic; usage: EVENT <topic>"),
        (replies.unexpected_argument("6", "PING"), Code.BAD_COMMAND, "unexpected '6'; usage: PING"),
        (
            replies.bad_number("limit", "ten", 1, 1000),
            Code.BAD_COMMAND,
            "limit: expected a number from 1 to 1000, got 'ten'",
        ),
    ],
)
def test_why_a_line_is_rejected(rejection: Rejection, code: Code, detail: str) -> None:
    assert rejection == Rejection(code, detail)


@pytest.mark.parametrize(
    ("failure", "code", "detail"),
    [
        (
            replies.unfinished_line(3, 120.0, Framing.NONE),
            Code.UNFINISHED_LINE,
            "line 3 is still unfinished after 120 s; send it again",
        ),
        (
            replies.unfinished_line(1, 0.5, Framing.NUL),
            Code.UNFINISHED_LINE,
            "line 1 is still unfinished after 0.5 s"
            " (its events seem to end with NUL bytes; this port wants line feeds); send it again",
        ),
        (
            replies.unfinished_line(1, 2, Framing.OCTETS),
            Code.UNFINISHED_LINE,
            "line 1 is still unfinished after 2 s (it seems to count octets (RFC 6587); this port wants line feeds);"
            " send it again",
        ),
        (
            replies.unfinished_line(1, 2, Framing.ARRAY),
            Code.UNFINISHED_LINE,
            "line 1 is still unfinished after 2 s (it seems to be one endless JSON array; this port wants line feeds);"
            " send it again",
        ),
        (replies.storage_full("no space"), Code.STORAGE_FULL, "no space"),
        (replies.cannot_read("cannot read: EIO"), Code.STORAGE, "cannot read: EIO"),
        (replies.store_failed("EIO"), Code.STORAGE, "the store has failed: EIO"),
        (replies.stopping(), Code.SHUTTING_DOWN, "the server is stopping; send this again with the same id"),
        (replies.too_many_connections(960), Code.BUSY, "960 connections are open; try again later"),
        (
            replies.too_many_connections(720, "::1/64"),
            Code.BUSY,
            "720 connections from ::1/64 are open; try again later",
        ),
    ],
)
def test_why_it_is_unknown_whether_something_is_stored(failure: Failure, code: Code, detail: str) -> None:
    assert failure == Failure(code, detail)


def test_what_a_client_of_another_protocol_is_told() -> None:
    assert replies.to_foreign(Foreign.PROXY, 1) == (
        b'{"status":"rejected","code":"bad_line","detail":"this port takes no PROXY header: switch it off","line":1}\n'
    )


@pytest.mark.parametrize(
    "rejection",
    [
        replies.no_event(b"x" * 4000),
        replies.unknown_command("X" * 4000),
        replies.unexpected_argument("X" * 4000, "PING"),
        replies.bad_number("limit", "9" * 4000, 1, 10),
    ],
)
def test_of_what_a_client_sent_little_is_repeated(rejection: Rejection) -> None:
    assert len(rejection.detail) < 120


names = st.text(
    st.sampled_from('ab"\\/é日🙂\u00a0\u2028\u200b') | st.characters(exclude_categories=["Cc", "Cs"]),
    min_size=1,
    max_size=8,
)


@settings(max_examples=500)
@given(
    keys=st.lists(st.tuples(names | st.just("t"), names | st.just("e"), st.integers(1, 2**62)), max_size=6),
    older=st.dictionaries(st.integers(0, 12), st.integers(1, 2**62)),
    offset=st.integers(0, 6),
)
@example([('"', "a", 1), ("b", "c", 2)], {}, 0)
@example([("a", "\\", 1)], {0: 7}, 0)
def test_acks_are_encoded_as_any_other_reply(
    keys: list[tuple[str, str, int]], older: dict[int, int], offset: int
) -> None:
    events = [Event.of(topic, event_id, b"{}") for topic, event_id, _ in keys]
    seqs = [seq for _, _, seq in keys]
    one_by_one = [
        replies.duplicate(event, older[position]) if position in older else replies.stored(event, seq)
        for position, (event, seq) in enumerate(zip(events, seqs, strict=True), offset)
    ]

    assert replies.acks(events, seqs, older, offset) == one_by_one
    assert replies.encode_acks(Events.of(events), seqs, older, offset) == b"".join(map(replies.encode, one_by_one))
