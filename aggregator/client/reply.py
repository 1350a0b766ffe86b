"""What a server answers, as a client reads it."""

from __future__ import annotations

import os
import socket
from typing import Any, Final

import orjson

from aggregator.wire import Code, Status

MAX_REPLY_BYTES: Final = 64 << 20
"""The longest reply: what a server with default limits answers to a mebibyte of the smallest batch members."""

_STORED: Final = b'{"status":"stored",'
_DUPLICATE: Final = b'{"status":"duplicate",'


class NotOurProtocol(Exception):
    """What listens there answers, but is no aggregator."""


class Unknown(Exception):
    """An ``error`` reply: its line, stored or not, has to be sent again; or all lines, on another connection."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.ends_connection = code in (Code.BUSY, Code.SHUTTING_DOWN)


def final_status(reply: bytes | None) -> Status:
    """The status of a final reply; raises Unknown for one that is not final, NotOurProtocol for anything else."""
    if reply is None:
        raise NotOurProtocol(f"a reply longer than {MAX_REPLY_BYTES} bytes")
    if reply.startswith(_STORED):  # nearly all: not worth decoding
        return Status.STORED
    if reply.startswith(_DUPLICATE):
        return Status.DUPLICATE
    fields = _decode(reply)
    status = fields["status"]
    if status == Status.BATCH and fields.get("error"):
        fields = next((one for one in fields.get("results", ()) if one.get("status") == Status.ERROR), fields)
        status = Status.ERROR
    if status == Status.ERROR:
        raise Unknown(str(fields.get("code")), str(fields.get("detail")))
    if status not in (Status.REJECTED, Status.BATCH):
        raise NotOurProtocol(f"unexpected reply {shorten(reply)}")
    return Status(status)


def _decode(reply: bytes) -> dict[str, Any]:
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
    if error.errno:
        return os.strerror(error.errno)
    return str(error) or "timed out"
