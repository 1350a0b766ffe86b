"""The identity of one client, from what the client has shown."""

from __future__ import annotations

from typing import Any

from aggregator.access import token
from aggregator.access.identity import KEY_HOLDER, AuthMethod, Identity
from aggregator.access.rules import Known
from aggregator.server.credentials import Credentials
from aggregator.server.identities import Identities
from aggregator.wire import Failure, replies


class Caller:
    """One client, identified or not. Its identity comes from its connection alone, never from the content of events."""

    def __init__(self, identities: Identities, credentials: Credentials) -> None:
        self._identities = identities
        self.credentials = credentials
        self._digest: str | None = None  # of the token that it has shown
        self._has_key = False
        self._known: Known | None = None
        self.renew()

    @property
    def identity(self) -> Identity | None:
        """The client's identity; None: not known."""
        return self._known.identity if self._known else None

    @property
    def by(self) -> AuthMethod | None:
        """How the identity is known."""
        return self._known.by if self._known else None

    def show(self, text: str) -> Failure | None:
        """Take a token; return why it is refused, or None if it is right."""
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
        """Note that the client knows the shared key of its port, which gives it an identity if nothing else does."""
        self._has_key = True
        self.renew()

    def renew(self) -> None:
        """Identify the client by the rules in force. A token that it has shown counts first, the shared key last."""
        rules = self._identities.rules
        if self._digest is not None:
            identity = rules.by_digest(self._digest)
            self._known = Known(identity, AuthMethod.TOKEN) if identity else None
        else:
            key_holder = Known(KEY_HOLDER, AuthMethod.KEY) if self._has_key else None
            self._known = rules.identify(self.credentials) or key_holder

    @property
    def who(self) -> dict[str, Any]:
        """The identity, as WHOAMI and CLIENTS show it."""
        return {"identity": self.identity.name if self.identity else None, "by": self.by}

    @property
    def permissions(self) -> dict[str, Any]:
        """What the client may do, as the answer to AUTH shows it."""
        if (identity := self.identity) is None:
            return {}
        return {"publish": identity.publish.globs, "read": identity.read.globs, "may": sorted(identity.may)}
