"""The identities of one server: the rules in force, read from their file at the start and at each reload."""

from __future__ import annotations

import os
from collections.abc import Callable

from aggregator.access import file
from aggregator.access.identity import Identity
from aggregator.access.rate import Rate
from aggregator.access.rules import Rules
from aggregator.config import Config
from aggregator.server.reload import CannotLoad


class Identities:
    """Which identities there are. Without a file, or before ``load``, there are none but the server's own."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.on_change: Callable[[], None] = lambda: None
        """Called after the rules have been replaced."""
        self.rules = Rules((), config.anonymous, os.geteuid())
        self._rates: dict[str, Rate] = {}

    def load(self) -> Callable[[], None]:
        """Read the file and check it; return what puts its rules in force. Raises CannotLoad."""
        path, rules = self._config.identities, self.rules
        if path is not None:
            try:
                stanzas = file.read(path, self._config.max_line_bytes)
            except file.BadIdentities as error:
                raise CannotLoad(str(error)) from error
            rules = Rules(stanzas, self._config.anonymous, os.geteuid())

        def swap() -> None:
            self.rules = rules
            self._rates.clear()
            self.on_change()

        return swap

    def rate(self, identity: Identity) -> Rate | None:
        """The rate that all connections of this identity share; None: it is not limited."""
        if identity.events_per_s is None and identity.bytes_per_s is None:
            return None
        return self._rates.setdefault(identity.name, Rate(identity.events_per_s, identity.bytes_per_s))
