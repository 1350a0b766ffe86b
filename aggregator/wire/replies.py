"""Answers to bytes. One function here builds each reply text; only the texts about faulty events are in ``rules``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from aggregator.event import Event, Events
from aggregator.wire import Code, Failure, Rejection, Status
from aggregator.wire.lines import Foreign, Framing

Reply = dict[str, Any]
"""A reply before it is encoded; ``status`` comes first. It may contain ready-made JSON as ``orjson.Fragment``."""

_ACK_QUOTES: Final = 14  # how many quotes a stored or duplicate reply has if its names contain none
_SHOWN_CHARS: Final = 40  # how much of the client's text a detail shows


# --- whole replies


def encode(reply: Reply) -> bytes:
    """A reply as it goes over the wire: one line."""
    return orjson.dumps(reply, option=orjson.OPT_APPEND_NEWLINE)


def stored(event: Event, seq: int) -> Reply:
    """The ack of an event that was stored now."""
    return _ack(Status.STORED, event, seq)


def duplicate(event: Event, seq: int) -> Reply:
    """The ack of an event whose key was stored before, with the ``seq`` of the stored event."""
    return _ack(Status.DUPLICATE, event, seq)


def _ack(status: Status, event: Event, seq: int) -> Reply:
    return {"status": status, "seq": seq, "topic": event.topic, "event_id": event.event_id}


def encode_acks(events: Events, seqs: Iterable[int], duplicates: Mapping[int, int], offset: int) -> bytes:
    """The encoded ``stored`` and ``duplicate`` replies to events that were committed together.

    Each event has its seq from ``seqs``, unless ``duplicates`` has another seq for its position. Positions are counted
    from ``offset``.
    """
    older_seq = duplicates.get
    text = "".join(
        [
            f'{{"status":"stored","seq":{seq},"topic":"{topic}","event_id":"{event_id}"}}\n'
            if (older := older_seq(position)) is None
            else f'{{"status":"duplicate","seq":{older},"topic":"{topic}","event_id":"{event_id}"}}\n'
            for position, (seq, topic, event_id) in enumerate(
                zip(seqs, events.topics, events.event_ids, strict=True), offset
            )
        ]
    )
    # Names hold no control characters, so only these two characters would have to be escaped.
    if text.count('"') == _ACK_QUOTES * len(events) and "\\" not in text:
        return text.encode()
    return b"".join(map(encode, acks(events, seqs, duplicates, offset)))


def acks(events: Iterable[Event], seqs: Iterable[int], duplicates: Mapping[int, int], offset: int) -> list[Reply]:
    """The same replies, not encoded."""
    return [
        stored(event, seq) if (older := duplicates.get(position)) is None else duplicate(event, older)
        for position, (event, seq) in enumerate(zip(events, seqs, strict=True), offset)
    ]


def rejected(rejection: Rejection, line: int) -> Reply:
    """Certainly not stored; ``line`` is the 1-based number of the line on its connection."""
    reply = {"status": Status.REJECTED, "code": rejection.code, "detail": rejection.detail, "line": line}
    if rejection.topic is not None:
        reply["topic"] = rejection.topic
    if rejection.event_id is not None:
        reply["event_id"] = rejection.event_id
    return reply


def error(failure: Failure, event: Event | None = None) -> Reply:
    """Unknown whether stored: the client must send it again with the same id."""
    reply = {"status": Status.ERROR, "code": failure.code, "detail": failure.detail}
    if event is not None:
        reply |= {"topic": event.topic, "event_id": event.event_id}
    return reply


def batch(results: list[Reply]) -> Reply:
    """The one reply to a batch line, from the replies to its events, in order."""
    counts = Counter(result["status"] for result in results)
    counted = (Status.STORED, Status.DUPLICATE, Status.REJECTED, Status.ERROR)
    return {"status": Status.BATCH, **{status.value: counts[status] for status in counted}, "results": results}


def ok(answer: Reply) -> Reply:
    """A command's answer."""
    return {"status": Status.OK, **answer}


BYE: Final = encode(ok({"bye": True}))


HTTP_REPLY: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 66\r\nConnection: close\r\n\r\n"
    b"This port takes newline-delimited JSON over plain TCP, not HTTP.\r\n"
)


TLS_REPLY: Final = b"\x15\x03\x01\x00\x02\x02\x46"
"""A fatal protocol_version alert (RFC 8446, section 6): TLS clients print it instead of waiting."""


def to_foreign(protocol: Foreign, line: int) -> bytes:
    """The answer to a client that speaks another protocol, in its own protocol where that is possible."""
    if protocol is Foreign.HTTP:
        return HTTP_REPLY
    if protocol is Foreign.TLS:
        return TLS_REPLY
    return encode(rejected(Rejection(Code.BAD_LINE, "this port takes no PROXY header: switch it off"), line))


# --- lines to a subscriber, between replies; every matching event up to ``seq`` was sent


def caught_up(seq: int | str) -> bytes:
    return encode({"status": Status.CAUGHT_UP, "seq": seq})


def heartbeat(seq: int | str) -> bytes:
    return encode({"status": Status.HEARTBEAT, "seq": seq})


def gap(after: int | str, seq: int | str) -> bytes:
    return encode({"status": Status.GAP, "after": after, "seq": seq})


def end(seq: int | str) -> bytes:
    return encode({"status": Status.END, "seq": seq})


def subscription_over(failure: Failure, seq: int | str) -> bytes:
    return encode({**error(failure), "seq": seq})


# --- why a line is rejected, except for faults of events


def too_long(max_line_bytes: int) -> Rejection:
    return Rejection(Code.TOO_LONG, f"longer than {max_line_bytes} bytes; skipped to the end of the line")


def no_event(line: bytes) -> Rejection:
    character = line[:4].decode(errors="replace")[0]
    readable = character.isprintable() and character != "\ufffd"
    shown = repr(character) if readable else f"byte 0x{line[0]:02X}"
    return Rejection(Code.BAD_LINE, f"not an event: events begin with {{, this line with {shown}; HELP lists commands")


def bad_quit() -> Rejection:
    return Rejection(Code.BAD_COMMAND, "QUIT must stand alone on its line, in upper case")


def no_commands_here() -> Rejection:
    return Rejection(Code.NOT_ALLOWED, "the silent port answers no commands")


def may_not_publish(who: str, event: Event) -> Rejection:
    return Rejection(Code.NOT_ALLOWED, f"{who} may not publish to this topic", event.topic, event.event_id)


def may_not_use(who: str, word: str) -> Rejection:
    return Rejection(Code.NOT_ALLOWED, f"{who} may not use {word}")


def late_auth() -> Rejection:
    return Rejection(Code.BAD_COMMAND, "AUTH must be the first line of a connection")


def long_command(most: int, size: int) -> Rejection:
    return Rejection(Code.BAD_COMMAND, f"a command has at most {most} bytes, this one {size}")


def bad_utf8_in_command(byte: int) -> Rejection:
    return Rejection(Code.BAD_COMMAND, f"not valid UTF-8 at byte {byte}")


def bad_quoting(why: str) -> Rejection:
    return Rejection(Code.BAD_COMMAND, f"{why.lower()}: quote arguments as in a shell")


def unknown_command(word: str) -> Rejection:
    return Rejection(Code.BAD_COMMAND, f"unknown command {word[:_SHOWN_CHARS]}; HELP lists them")


def too_many_arguments(usage: str) -> Rejection:
    return Rejection(Code.BAD_COMMAND, f"too many arguments; usage: {usage}")


def missing_argument(what: str, usage: str) -> Rejection:
    return Rejection(Code.BAD_COMMAND, f"{what}; usage: {usage}")


def unexpected_argument(argument: str, usage: str) -> Rejection:
    return Rejection(Code.BAD_COMMAND, f"unexpected {argument[:_SHOWN_CHARS]!r}; usage: {usage}")


def bad_number(name: str, text: str, lowest: int, highest: int) -> Rejection:
    return Rejection(
        Code.BAD_COMMAND, f"{name}: expected a number from {lowest} to {highest}, got {text[:_SHOWN_CHARS]!r}"
    )


def not_a_position(name: str, text: str, head: str) -> Rejection:
    return Rejection(
        Code.BAD_COMMAND,
        f"{name}: expected a seq from the server, such as {head}, got {text[:_SHOWN_CHARS]!r}",
    )


def not_a_moment(name: str, text: str) -> Rejection:
    return Rejection(
        Code.BAD_COMMAND,
        f"{name}: expected NOW, a date and time, or an age like 10m, got {text[:_SHOWN_CHARS]!r}",
    )


def bad_option(why: str, usage: str) -> Rejection:
    return Rejection(Code.BAD_COMMAND, f"{why}; usage: {usage}")


def bad_pattern(pattern: str, why: str) -> Rejection:
    return Rejection(Code.BAD_COMMAND, f"{pattern[:_SHOWN_CHARS]!r}: {why}")


def past_the_newest(name: str, seq: int | str, head: int | str) -> Rejection:
    return Rejection(Code.BAD_COMMAND, f"{name}: {seq} is past the newest event, {head}: is this the same store?")


def not_now(why: str) -> Rejection:
    return Rejection(Code.BAD_COMMAND, why)


# --- why it is unknown whether something is stored


def unfinished_line(line: int, timeout_s: float, framing: Framing) -> Failure:
    hint = "" if framing is Framing.NONE else f" ({framing.value}; this port wants line feeds)"
    return Failure(Code.UNFINISHED_LINE, f"line {line} is still unfinished after {timeout_s:g} s{hint}; send it again")


def cut_line(line: int) -> Failure:
    """The stream ended without TLS's close_notify, as it does when somebody truncates it."""
    return Failure(
        Code.UNFINISHED_LINE, f"line {line} may be cut: it ended without LF and TLS's close_notify; send it again"
    )


def tls_required() -> Failure:
    return Failure(Code.TLS_REQUIRED, "this port speaks TLS")


def storage_full(why: str) -> Failure:
    return Failure(Code.STORAGE_FULL, why)


def cannot_read(why: str) -> Failure:
    return Failure(Code.STORAGE, why)


def store_failed(why: str) -> Failure:
    return Failure(Code.STORAGE, f"the store has failed: {why}")


def stopping() -> Failure:
    return Failure(Code.SHUTTING_DOWN, "the server is stopping; send this again with the same id")


def no_more_deliveries() -> Failure:
    return Failure(Code.SHUTTING_DOWN, "the server is stopping; subscribe again when it is running")


def too_many_connections(limit: int, origin: str | None = None) -> Failure:
    """All connections are in use, or all that one address may have."""
    whose = f" from {origin}" if origin else ""
    return Failure(Code.BUSY, f"{limit} connections{whose} are open; try again later")


def too_many_subscribers(limit: int) -> Failure:
    return Failure(Code.BUSY, f"{limit} subscribers; try again later")


def taken_over(peer: str, name: str) -> Failure:
    return Failure(Code.TAKEN_OVER, f"{peer} subscribed as {name}")


def too_many_cursors(limit: int) -> Failure:
    return Failure(Code.BUSY, f"{limit} names are kept already; FORGET some")


def forgotten(peer: str, name: str) -> Failure:
    return Failure(Code.TAKEN_OVER, f"{peer} forgot {name}")


# --- authentication


def auth_required() -> Failure:
    return Failure(Code.AUTH_REQUIRED, "authenticate first: AUTH <token>, or a client certificate")


def nobody_is_known() -> Failure:
    return Failure(Code.AUTH_REQUIRED, "no rule identifies this address, and this port accepts no other credentials")


def unknown_token() -> Failure:
    return Failure(Code.AUTH_FAILED, "unknown token")


def missing_token() -> Failure:
    return Failure(Code.AUTH_FAILED, "a token is missing; usage: AUTH <token>")


def token_in_the_open() -> Failure:
    return Failure(Code.AUTH_FAILED, "tokens are accepted over TLS, loopback and unix sockets only")


def no_longer_known(who: str) -> Failure:
    return Failure(Code.AUTH_FAILED, f"the credentials of {who} are no longer valid")


def permissions_changed(who: str) -> Failure:
    return Failure(Code.SHUTTING_DOWN, f"the read permissions of {who} have changed; connect again")


def other_authorities() -> Failure:
    return Failure(Code.SHUTTING_DOWN, "the CA or the CRL has changed; connect again")


def killed() -> Failure:
    return Failure(Code.KILLED, "an administrator has ended this connection")


def too_many_of_identity(limit: int, who: str) -> Failure:
    return Failure(Code.BUSY, f"{limit} connections of {who} are open; try again later")
