"""Who one client is: what it has shown, and which identity that gives it."""

from __future__ import annotations

from typing import Any

from aggregator.access import token
from aggregator.access.identity import KEY_HOLDER, AuthMethod, Identity
from aggregator.server.credentials import Credentials
from aggregator.server.identities import Identities
from aggregator.wire import Failure, replies


class Caller:
    """One client, known or not. What it is comes from its connection alone, never from what an event says."""

    def __init__(self, identities: Identities, credentials: Credentials) -> None:
        self._identities = identities
        self.credentials = credentials
        self._digest: str | None = None  # of the token that it has shown
        self.identity: Identity | None = None
        self.by: AuthMethod | None = None
        self._identify()

    def show(self, text: str) -> Failure | None:
        """Take a token; return why it does not help."""
        if not self.credentials.is_private:
            return replies.token_in_the_open()
        if not text:
            return replies.missing_token()
        found = self._identities.rules.by_token(text)
        if found is None:
            return replies.unknown_token()
        self.identity, self.by, self._digest = found, AuthMethod.TOKEN, token.digest(text)
        return None

    def show_key(self) -> None:
        """It knows the shared key of its port: that makes it somebody, if it is nobody yet."""
        if self.identity is None:
            self.identity, self.by = KEY_HOLDER, AuthMethod.KEY

    def renew(self) -> None:
        """See who it is by rules that are new."""
        if self._digest is not None:
            self.identity = self._identities.rules.by_digest(self._digest)
        elif self.by is not AuthMethod.KEY:
            self._identify()

    @property
    def who(self) -> dict[str, Any]:
        """Who it is, as WHOAMI and CLIENTS say it."""
        return {"identity": self.identity.name if self.identity else None, "by": self.by}

    @property
    def permissions(self) -> dict[str, Any]:
        """What it may do, as AUTH says it."""
        if (identity := self.identity) is None:
            return {}
        return {"publish": identity.publish.globs, "read": identity.read.globs, "may": sorted(identity.may)}

    def _identify(self) -> None:
        known = self._identities.rules.identify(self.credentials)
        self.identity, self.by = known or (None, None)
