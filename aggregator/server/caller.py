"""Who one client is: what it has shown, and which identity that gives it."""

from __future__ import annotations

from typing import Any

from aggregator.access import token
from aggregator.access.identity import KEY_HOLDER, AuthMethod, Identity
from aggregator.access.rules import Known
from aggregator.server.credentials import Credentials
from aggregator.server.identities import Identities
from aggregator.wire import Failure, replies


class Caller:
    """One client, known or not. What it is comes from its connection alone, never from what an event says."""

    def __init__(self, identities: Identities, credentials: Credentials) -> None:
        self._identities = identities
        self.credentials = credentials
        self._digest: str | None = None  # of the token that it has shown
        self._has_key = False
        self._known: Known | None = None
        self.renew()

    @property
    def identity(self) -> Identity | None:
        """Who it is; None: nobody knows."""
        return self._known.identity if self._known else None

    @property
    def by(self) -> AuthMethod | None:
        """How that is known."""
        return self._known.by if self._known else None

    def show(self, text: str) -> Failure | None:
        """Take a token; return why it does not help."""
        if not self.credentials.is_private:
            return replies.token_in_the_open()
        if not text:
            return replies.missing_token()
        if not self._identities.rules.by_token(text):
            return replies.unknown_token()
        self._digest = token.digest(text)
        self.renew()
        return None

    def show_key(self) -> None:
        """It knows the shared key of its port: that makes it somebody, if nothing else does."""
        self._has_key = True
        self.renew()

    def renew(self) -> None:
        """See who it is by the rules in force. The token that it has shown counts first, and the shared key last."""
        rules = self._identities.rules
        if self._digest is not None:
            identity = rules.by_digest(self._digest)
            self._known = Known(identity, AuthMethod.TOKEN) if identity else None
        else:
            key_holder = Known(KEY_HOLDER, AuthMethod.KEY) if self._has_key else None
            self._known = rules.identify(self.credentials) or key_holder

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
