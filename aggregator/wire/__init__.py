r"""The protocol of the lines: its grammar and its words. Pure: no asyncio, no socket, no database.

The grammar (README.md, "Protocol", says the same to client authors, with every reply literal)::

    stream   = [BOM] *( line LF ) [ line ]         an unterminated last line counts if the stream ends in order
    line     = [blanks] content [CR]               UTF-8; content at most max_line_bytes long; empty: skipped
    content  = "{" event or batch                  a JSON object; a batch has "events" and no "topic"
             | "[" batch                           a JSON array of events
             | Word arguments                      a command; its arguments are quoted as in a shell
             | anything else                       rejected, code bad_line

Each complete non-empty line is answered by one reply line, in order. A line longer than max_line_bytes is answered
once (code too_long) and skipped up to its LF: its tail is never parsed as a line. A first line that looks like an
HTTP request, a TLS ClientHello or a PROXY header belongs to another protocol: nothing after it is read as lines.

A line passes through the modules in this order: ``lines`` (bytes to lines), ``meaning`` (lines to what they mean),
``rules`` (JSON to events, or what is wrong with it), ``replies`` (answers to bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """The first word of every reply."""

    STORED = "stored"
    """An ack: the event is on disk, stored now."""
    DUPLICATE = "duplicate"
    """An ack: an event with the same key was stored earlier and is on disk."""
    BATCH = "batch"
    """The reply to a batch line, with a reply for each of its events."""
    OK = "ok"
    """A command's answer."""
    EVENT = "event"
    """An event that is delivered to a subscriber."""
    CAUGHT_UP = "caught_up"
    """The backlog is delivered; later events are delivered as they are committed."""
    HEARTBEAT = "heartbeat"
    """Nothing else was sent for a while."""
    GAP = "gap"
    """Some events are no longer in the store."""
    END = "end"
    """The subscription has reached the end that it asked for."""
    REJECTED = "rejected"
    """Certainly not stored, and never will be: sending the line again is useless."""
    ERROR = "error"
    """Unknown whether stored: send it again with the same id, which is always safe."""


class Code(StrEnum):
    """Why a line was rejected or met an error. Programs read it, so a code never changes its meaning."""

    BAD_LINE = "bad_line"
    """The line begins with a character that begins neither an event nor a command."""
    BAD_JSON = "bad_json"
    """The line is not JSON, or not UTF-8."""
    BAD_EVENT = "bad_event"
    """The JSON is not an event."""
    BAD_COMMAND = "bad_command"
    """The command is unknown, or its arguments are wrong."""
    TOO_LONG = "too_long"
    """The line is longer than the server takes; the rest of it was skipped."""
    TOO_DEEP = "too_deep"
    """The JSON is nested too deeply."""
    NOT_ALLOWED = "not_allowed"
    """This port does not support the request, or the client may not make it."""
    AUTH_REQUIRED = "auth_required"
    """The client must authenticate before it sends anything else."""
    AUTH_FAILED = "auth_failed"
    """The client's credentials are not accepted, or are no longer valid."""
    KILLED = "killed"
    """An administrator has ended the connection."""
    UNFINISHED_LINE = "unfinished_line"
    """The line began but did not end, or did not end in time."""
    TLS_REQUIRED = "tls_required"
    """This port speaks TLS, and the client does not."""
    STORAGE_FULL = "storage_full"
    """The disk is full; events are acked again when there is space."""
    STORAGE = "storage"
    """The store has failed, or could not be read."""
    BUSY = "busy"
    """Too many connections are open, or too many subscribers."""
    TAKEN_OVER = "taken_over"
    """Another client has subscribed under the same name."""
    SHUTTING_DOWN = "shutting_down"
    """The server is stopping."""


class Word(StrEnum):
    """The first word of a command, in any case. QUIT must be in upper case, so that plain text cannot end a stream."""

    PING = "PING"
    HELP = "HELP"
    STATS = "STATS"
    HEALTH = "HEALTH"
    TOPICS = "TOPICS"
    EVENTS = "EVENTS"
    EVENT = "EVENT"
    SUBSCRIBE = "SUBSCRIBE"
    UNSUBSCRIBE = "UNSUBSCRIBE"
    ACK = "ACK"
    SUBSCRIBERS = "SUBSCRIBERS"
    CURSORS = "CURSORS"
    FORGET = "FORGET"
    AUTH = "AUTH"
    WHOAMI = "WHOAMI"
    CLIENTS = "CLIENTS"
    KILL = "KILL"
    QUIT = "QUIT"


@dataclass(slots=True)
class Rejection:
    """Why an event or a line is certainly not stored.

    ``detail`` is for people. ``topic`` and ``event_id`` are set if they could be read.
    """

    code: Code
    detail: str
    topic: str | None = None
    event_id: str | None = None


@dataclass(slots=True)
class Failure:
    """Why it is unknown whether events are stored."""

    code: Code
    detail: str
