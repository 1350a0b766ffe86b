"""An identity: its name, and what whoever proves to be it may do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from aggregator.access.topics import Topics


class Permission(StrEnum):
    """What takes a permission by name. None is given by default."""

    MONITOR = "monitor"
    """To see how the server is, and who its clients are."""
    ADMIN = "admin"
    """That, and to end their connections."""


class AuthMethod(StrEnum):
    """How a client has shown who it is."""

    TOKEN = "token"  # noqa: S105 (no secret)
    CERTIFICATE = "certificate"
    UID = "uid"
    ADDRESS = "address"
    KEY = "key"
    """It knows the shared key of the Forward port."""
    ANONYMOUS = "anonymous"
    """Not at all."""


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
    """How many it may have open at a time."""
    max_line_bytes: int | None = None
    """Its longest line; None: the server's."""

    def may_publish(self, topics: Iterable[str]) -> bool:
        """Whether it may publish to each of these topics."""
        return self.publish.has_all(topics)

    def has(self, permission: Permission) -> bool:
        """Whether it has this permission, or one that includes it."""
        return permission in self.may or Permission.ADMIN in self.may

    def only_publishing(self) -> Identity:
        """The same for those of whom only the address is known: they may publish, and nothing else."""
        return dataclasses.replace(self, read=Topics(), may=frozenset())


_EVERY_TOPIC: Final = Topics(("*",))

NOBODY: Final = Identity("nobody")
"""Whom an inbox takes its client for until it is told better: somebody who may do nothing."""

ANONYMOUS: Final = Identity("anonymous", _EVERY_TOPIC, _EVERY_TOPIC, frozenset({Permission.MONITOR}))
"""Whoever is let in without being known."""

ADMINISTRATOR: Final = Identity("administrator", _EVERY_TOPIC, _EVERY_TOPIC, frozenset({Permission.ADMIN}))
"""The superuser, and the user that the server runs as: on a unix socket both may do everything."""

KEY_HOLDER: Final = Identity("forward", _EVERY_TOPIC)
"""Whoever knows the shared key of the Forward port, which is for publishing only."""

RESERVED: Final = frozenset({ANONYMOUS.name, ADMINISTRATOR.name, KEY_HOLDER.name})
"""Names that no identity of a file may have."""
