"""What PostgreSQL's errors mean for storing and reading events."""

from __future__ import annotations

from typing import Final

import psycopg

from aggregator.storage.engine import StorageBusy, StorageError, StorageFailed, StorageFull
from aggregator.storage.postgres import schema
from aggregator.storage.postgres.link import NotConnected, Unknown

TRANSIENT: Final = frozenset(
    {
        "40001",  # serialization failure
        "40P01",  # deadlock
        "55P03",  # the lane was not free within its timeout
        "57014",  # cancelled by an administrator before the commit; a later cancellation gives a warning instead
        "25006",  # the server is a standby by now
        "53000",
        "53300",  # too many connections
        schema.WEAK,
    }
)
"""Nothing was stored, and a later attempt may succeed."""

FULL: Final = frozenset({"53100", "53200"})
"""The disk is full, or the memory."""

LinkError = psycopg.Error | NotConnected | Unknown
LINK_ERRORS: Final = (psycopg.Error, NotConnected, Unknown)


def is_unknown(error: LinkError) -> bool:
    """Whether the statement may have been carried out. A server that ends a connection may have committed before.

    An error without an SQLSTATE is psycopg's own: psycopg has refused to send the statement.
    """
    if isinstance(error, psycopg.Error):
        return error.sqlstate is not None and error.sqlstate.startswith(("57P", "08"))
    return isinstance(error, Unknown)


def storage_error(error: LinkError) -> StorageError:
    """The error as an engine raises it. StorageBusy: the next attempt tells whether this one was carried out."""
    if not isinstance(error, psycopg.Error):
        return StorageBusy(str(error))
    state = error.sqlstate
    text = error.diag.message_primary or " ".join(str(error).split())
    if is_unknown(error) or state in TRANSIENT:
        return StorageBusy(text)
    if state in FULL:
        return StorageFull(text)
    return StorageFailed(f"{text} ({state or type(error).__name__})")
