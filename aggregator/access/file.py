"""The file of ``--identities``: TOML (toml.io, v1.0.0), with one ``[[identity]]`` for each identity.

A mistake is reported in one line.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from aggregator import regular_file
from aggregator.access import users
from aggregator.access.identity import RESERVED, Identity, Permission
from aggregator.access.rules import Network, Stanza
from aggregator.access.topics import BadGlob, Topics

MAX_FILE_BYTES: Final = 4 << 20
"""Room for some ten thousand identities."""

MAX_GLOBS: Final = 64
"""Globs in one list. Each of them is tried for each new topic."""

MAX_NUMBER: Final = 1 << 40

_SHOWN_CHARS: Final = 40
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_CERTIFICATE: Final = re.compile(r"(?:DNS|CN):.+")
_PROOFS: Final = ("token_sha256", "cert", "address", "uid")
_KNOWN: Final = (
    "name", *_PROOFS, "publish", "read", "may", "events_per_s", "bytes_per_s", "connections", "max_line_bytes",
)  # fmt: skip

T = TypeVar("T")


class BadIdentities(Exception):
    """The file cannot be used; the text says why in one line, for an administrator. It shows nothing secret."""


def read(path: Path, max_line_bytes: int) -> list[Stanza]:
    """The identities in the file. ``max_line_bytes`` is the server's limit. Raises BadIdentities."""
    try:
        return parse(_text(path), max_line_bytes)
    except OSError as error:
        raise BadIdentities(f"cannot read {path} (--identities): {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadIdentities(f"{path} (--identities): not valid UTF-8 at byte {error.start + 1}") from None
    except BadIdentities as error:
        raise BadIdentities(f"{path} (--identities): {error}") from None


def parse(text: str, max_line_bytes: int) -> list[Stanza]:
    """The identities that a text describes. Raises BadIdentities."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadIdentities(f"not valid TOML: {_one_line(str(error))}") from None
    if others := [name for name in document if name != "identity"]:
        raise BadIdentities(f"{_shown(others[0])}: unknown, expected [[identity]]")
    tables = document.get("identity", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise BadIdentities("identity: expected tables, each under [[identity]]")
    stanzas = [_Table(table, number, max_line_bytes).stanza() for number, table in enumerate(tables, 1)]
    _refuse_ambiguity(stanzas)
    return stanzas


def name_fault(name: object) -> str | None:
    """Why an identity may not have this name; None: it may."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "expected 1 to 64 of the characters A-Z a-z 0-9 . _ -"
    return f"{name} is reserved for the server" if name in RESERVED else None


def _text(path: Path) -> str:
    with regular_file.opened(path) as file:
        status = os.fstat(file.fileno())
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise BadIdentities("users other than its owner may write to it: chmod 640")
        if status.st_mode & stat.S_IROTH:
            raise BadIdentities("everybody may read it: chmod 640")
        if status.st_size > MAX_FILE_BYTES:
            raise BadIdentities(f"longer than {MAX_FILE_BYTES} bytes")
        return file.read().decode()


class _Table:
    """One ``[[identity]]``, as TOML has it."""

    def __init__(self, table: dict[str, Any], number: int, max_line_bytes: int) -> None:
        self._table = table
        self._max_line_bytes = max_line_bytes
        name = table.get("name")
        is_named = isinstance(name, str) and _NAME.fullmatch(name)
        self._called = f'identity "{name}"' if is_named else f"identity {number}"

    def stanza(self) -> Stanza:
        """The identity that it describes, and its proofs. Raises BadIdentities."""
        if others := [key for key in self._table if key not in _KNOWN]:
            raise self._bad(f"{_shown(others[0])}: unknown, expected one of {', '.join(_KNOWN)}")
        name = self._name()
        identity = Identity(
            name,
            self._topics("publish"),
            self._topics("read"),
            frozenset(self._list("may", _permission)),
            self._number("events_per_s", float, MAX_NUMBER),
            self._number("bytes_per_s", float, MAX_NUMBER),
            self._number("connections", int, MAX_NUMBER),
            self._number("max_line_bytes", int, self._max_line_bytes),
        )
        stanza = Stanza(
            identity,
            self._list("token_sha256", _digest),
            self._list("cert", _certificate),
            self._list("address", _network),
            self._list("uid", _uid),
        )
        if not any(map(self._table.get, _PROOFS)):
            raise self._bad(f"no client can have this identity without one of {', '.join(_PROOFS)}")
        if stanza.networks and not identity.publish:
            raise self._bad("address: it permits publishing only, and publish is empty")
        return stanza

    def _name(self) -> str:
        name = self._table.get("name")
        if fault := name_fault(name):
            raise self._bad(f"name: {fault}")
        return str(name)

    def _topics(self, key: str) -> Topics:
        try:
            topics = Topics(self._list(key, _glob))
        except BadGlob as error:
            raise self._bad(f"{key}: {error}") from None
        if len(topics.globs) > MAX_GLOBS:
            raise self._bad(f"{key}: at most {MAX_GLOBS} globs")
        return topics

    def _list(self, key: str, read: Callable[[Any], T]) -> tuple[T, ...]:
        """A list, each member converted by ``read``, which raises ValueError with what it expected."""
        values = self._table.get(key, [])
        if not isinstance(values, list):
            raise self._bad(f"{key}: expected a list, got {_kind(values)}")
        try:
            return tuple(map(read, values))
        except ValueError as error:
            raise self._bad(f"{key}: {error}") from None

    def _number(self, key: str, kind: type[Any], highest: int) -> Any:
        if (value := self._table.get(key)) is None:
            return None
        kinds = (int,) if kind is int else (int, float)
        if type(value) not in kinds or not 0 < value <= highest:  # refuses NaN too
            what = "a whole number" if kind is int else "a number"
            raise self._bad(f"{key}: expected {what} above 0, up to {highest}, got {_shown(value)}")
        return value

    def _bad(self, why: str) -> BadIdentities:
        return BadIdentities(f"{self._called}: {why}")


def _refuse_ambiguity(stanzas: list[Stanza]) -> None:
    """Raise BadIdentities if two identities have the same name or the same proof."""
    names: set[str] = set()
    owners: dict[tuple[str, Any], str] = {}
    for stanza in stanzas:
        name = stanza.identity.name
        if name in names:
            raise BadIdentities(f'identity "{name}": name: another identity has this name')
        names.add(name)
        proofs = (stanza.digests, stanza.certificates, stanza.networks, stanza.uids)
        for key, values in zip(_PROOFS, proofs, strict=True):
            for value in values:
                if (owner := owners.setdefault((key, value), name)) != name:
                    shown = "the same digest" if key == "token_sha256" else value
                    raise BadIdentities(f'identity "{name}": {key}: {shown} is given twice, first to "{owner}"')


# --- members of lists; each raises ValueError


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):  # it may be the token itself, so it is not shown
        raise ValueError("expected 64 hexadecimal digits, as `aggregator token` prints them")
    return value.lower()


def _certificate(value: Any) -> str:
    if not isinstance(value, str) or not _CERTIFICATE.fullmatch(value):
        raise ValueError(f'expected "DNS:name" or "CN:name", got {_shown(value)}')
    return value


def _network(value: Any) -> Network:
    if not isinstance(value, str):
        raise ValueError(f"expected an address or a network, got {_shown(value)}")
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(_one_line(str(error))) from None


def _uid(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ValueError(f"expected the number of a user, got {_shown(value)}")
    if value == users.overflow_uid():
        raise ValueError(f"{value} is not a user: the kernel reports it for every user that it cannot map")
    return value


def _glob(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a topic or a glob, got {_shown(value)}")
    return value


def _permission(value: Any) -> Permission:
    try:
        return Permission(value)
    except ValueError:
        raise ValueError(f"expected {' or '.join(Permission)}, got {_shown(value)}") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _kind(value: Any) -> str:
    return {str: "a string", bool: "a boolean", int: "a number", float: "a number", dict: "a table"}.get(
        type(value), "a date or a time"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
