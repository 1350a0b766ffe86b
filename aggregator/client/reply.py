"""A server's replies, as a client reads them."""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass
from typing import Any, Final

import orjson

from aggregator import openssl
from aggregator.client import match
from aggregator.wire import Code, Status

MAX_REPLY_BYTES: Final = 64 << 20
"""The longest reply: what a server with default limits answers to a mebibyte of the smallest batch members."""

_ACKS: Final = (
    (b'{"status":"stored",', Status.STORED),
    (b'{"status":"duplicate",', Status.DUPLICATE),
)

_ENDS_CONNECTION: Final = (
    Code.BUSY, Code.SHUTTING_DOWN, Code.TLS_REQUIRED, Code.AUTH_REQUIRED, Code.AUTH_FAILED, Code.KILLED,
)  # fmt: skip
"""The codes that a server sends before it ends the connection."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The final reply to one event, or to a batch."""

    status: Status
    seq: int | None = None
    code: str | None = None
    detail: str | None = None
    topic: str | None = None
    event_id: str | None = None
    results: tuple[Reply, ...] = ()
    """The replies to the members of a batch, in order."""

    @property
    def is_stored(self) -> bool:
        """Whether the event, or each event of a batch, is on the server's disk, stored now or before."""
        if self.status is Status.BATCH:
            return all(one.is_stored for one in self.results)
        return self.status in (Status.STORED, Status.DUPLICATE)


def read(json: bytes) -> Reply:
    """The reply that a line holds."""
    return _reply(decode(json))


def _reply(fields: dict[str, Any]) -> Reply:
    names = ("seq", "code", "detail", "topic", "event_id")
    results = tuple(map(_reply, fields.get("results", ())))
    return Reply(Status(fields["status"]), **{name: fields.get(name) for name in names}, results=results)


class NotOurProtocol(Exception):
    """The server answers, but it is not an aggregator."""


class Unknown(Exception):
    """An ``error`` reply: its line, stored or not, must be sent again; or all lines must, on another connection."""

    def __init__(self, code: str, detail: str, *, ends_connection: bool = False) -> None:
        super().__init__(f"{code}: {detail}")
        self.ends_connection = ends_connection or code in _ENDS_CONNECTION


class LostCount(Unknown):
    """A reply that does not answer the line whose turn it is."""

    def __init__(self, reply: bytes) -> None:
        self.detail = f"a reply to something other than what was sent (a PROXY header before it?): {shorten(reply)}"
        super().__init__("lost count", self.detail, ends_connection=True)


def final_status(reply: bytes | None, line: bytes | None, number: int) -> Status:
    """The status of a final reply to ``line``, the ``number``-th on its connection; ``line`` is None if no line waits.

    Raises Unknown for a reply that is not final, LostCount for one that is not to this line, and NotOurProtocol for
    anything else.
    """
    if reply is None:
        raise NotOurProtocol(f"a reply longer than {MAX_REPLY_BYTES} bytes")
    for beginning, status in _ACKS:
        if reply.startswith(beginning):  # nearly all: not worth decoding
            if line is None or not match.acks(reply, line):
                raise LostCount(reply)
            return status
    fields = decode(reply)
    status = fields["status"]
    if status not in (Status.ERROR, Status.REJECTED, Status.BATCH):
        raise NotOurProtocol(f"unexpected reply {shorten(reply)}")
    failure = _failure(fields)
    if failure is not None and (failure.ends_connection or line is None):
        raise failure
    if line is None or not match.answers(fields, line, number):
        raise LostCount(reply)
    if failure is not None:
        raise failure
    return Status(status)


def _failure(fields: dict[str, Any]) -> Unknown | None:
    """The failure that an ``error`` reply reports, or the first such reply in that of a batch."""
    if fields["status"] == Status.BATCH and fields.get("error"):
        fields = next((one for one in fields.get("results", ()) if one.get("status") == Status.ERROR), fields)
    elif fields["status"] != Status.ERROR:
        return None
    return Unknown(str(fields.get("code")), str(fields.get("detail")))


def decode(reply: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(reply)
    except orjson.JSONDecodeError:
        fields = None
    if type(fields) is not dict or "status" not in fields:
        raise NotOurProtocol(f"expected an aggregator's reply, got {shorten(reply)}")
    return fields


def shorten(reply: bytes) -> str:
    return repr(reply[:60])[1:] + ("…" if len(reply) > 60 else "")


def reason(error: OSError | UnicodeError) -> str:
    """Why something failed, in the system's words, without numbers and addresses."""
    if isinstance(error, socket.gaierror) or not isinstance(error, OSError):
        return str(error.strerror if isinstance(error, OSError) else error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return openssl.reason(error)
    if isinstance(error, ssl.SSLError):
        return f"TLS: {openssl.reason(error)}"
    if error.errno:
        return os.strerror(error.errno)
    return str(error) or "timed out"
