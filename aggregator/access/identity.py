"""An identity: its name, and what its clients may do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from aggregator.access.topics import Topics


class Permission(StrEnum):
    """Permissions that ``may`` grants by name. Identities of the file have none by default."""

    MONITOR = "monitor"
    """To see how the server is doing, and who its clients are."""
    ADMIN = "admin"
    """The same, and to end clients' connections."""


class AuthMethod(StrEnum):
    """How a client has shown who it is."""

    TOKEN = "token"  # noqa: S105 (no secret)
    CERTIFICATE = "certificate"
    UID = "uid"
    ADDRESS = "address"
    KEY = "key"
    """The client knows the shared key of the Forward port."""
    ANONYMOUS = "anonymous"
    """The client has not shown who it is."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client is, and what it may do."""

    name: str
    publish: Topics = field(default_factory=Topics)
    read: Topics = field(default_factory=Topics)
    may: frozenset[Permission] = frozenset()
    events_per_s: float | None = None
    """How fast all its connections together are read; None: no limit."""
    bytes_per_s: float | None = None
    connections: int | None = None
    """How many connections it may have open at a time."""
    max_line_bytes: int | None = None
    """Its longest line; None: the server's limit applies."""

    def may_publish(self, topics: Iterable[str]) -> bool:
        """Whether it may publish to each of these topics."""
        return self.publish.has_all(topics)

    def has(self, permission: Permission) -> bool:
        """Whether it has this permission, or one that includes it."""
        return permission in self.may or Permission.ADMIN in self.may

    def only_publishing(self) -> Identity:
        """This identity for a client of which only the address is known: it may publish, and nothing else."""
        return dataclasses.replace(self, read=Topics(), may=frozenset())


_EVERY_TOPIC: Final = Topics(("*",))

NOBODY: Final = Identity("nobody")
"""The identity that an inbox assumes until ``identify`` is called. It may do nothing."""

ANONYMOUS: Final = Identity("anonymous", _EVERY_TOPIC, _EVERY_TOPIC, frozenset({Permission.MONITOR}))
"""A client that is let in without authenticating."""

ADMINISTRATOR: Final = Identity("administrator", _EVERY_TOPIC, _EVERY_TOPIC, frozenset({Permission.ADMIN}))
"""The superuser and the user that the server runs as. On a unix socket both may do everything."""

KEY_HOLDER: Final = Identity("forward", _EVERY_TOPIC)
"""A client that knows the shared key of the Forward port, which is for publishing only."""

RESERVED: Final = frozenset({ANONYMOUS.name, ADMINISTRATOR.name, KEY_HOLDER.name})
"""Names that no identity of the file may have."""
