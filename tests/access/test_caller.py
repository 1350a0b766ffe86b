"""The identity of a client after each credential that it has shown, and after each change of the rules."""

from __future__ import annotations

import ipaddress

import pytest

from aggregator.access import token
from aggregator.access.identity import KEY_HOLDER, AuthMethod, Identity
from aggregator.access.rules import Rules, Stanza
from aggregator.access.topics import Topics
from aggregator.config import Anonymous, Config
from aggregator.server.caller import Caller
from aggregator.server.credentials import Credentials
from aggregator.server.identities import Identities

TOKEN = token.new()
WEB, LAN = Identity("web", Topics(["web.*"])), Identity("lan", Topics(["lan.*"]))
OF_TOKEN = Stanza(WEB, digests=(token.digest(TOKEN),))
OF_ADDRESS = Stanza(LAN, networks=(ipaddress.ip_network("10.1.0.0/16"),))

NEAR, FAR, FAR_OVER_TLS = Credentials("127.0.0.1"), Credentials("10.1.0.7"), Credentials("10.1.0.7", tls="TLSv1.3")


class World:
    """A client, and the rules that identify it."""

    def __init__(self, credentials: Credentials, *stanzas: Stanza) -> None:
        self._identities = Identities(Config())
        self._set(*stanzas)
        self.caller = Caller(self._identities, credentials)

    def _set(self, *stanzas: Stanza) -> None:
        self._identities.rules = Rules(stanzas, Anonymous.NONE)

    def renew(self, *stanzas: Stanza) -> None:
        self._set(*stanzas)
        self.caller.renew()

    def who(self) -> tuple[str | None, AuthMethod | None]:
        return self.caller.identity.name if self.caller.identity else None, self.caller.by


def test_a_token_counts_more_than_an_address_and_does_not_fall_back_to_it() -> None:
    world = World(FAR_OVER_TLS, OF_TOKEN, OF_ADDRESS)
    assert world.who() == ("lan", AuthMethod.ADDRESS)
    assert world.caller.show(TOKEN) is None
    assert world.who() == ("web", AuthMethod.TOKEN)
    world.renew(OF_ADDRESS)
    assert world.who() == (None, None)


@pytest.mark.parametrize(
    ("credentials", "text", "why"),
    [
        (NEAR, token.new(), "unknown token"),
        (NEAR, "", "a token is missing; usage: AUTH <token>"),
        (FAR, TOKEN, "tokens are accepted over TLS, loopback and unix sockets only"),
        (FAR, "", "tokens are accepted over TLS, loopback and unix sockets only"),
    ],
    ids=["unknown", "missing", "in the open", "missing in the open"],
)
def test_a_token_that_does_not_help_changes_nothing(credentials: Credentials, text: str, why: str) -> None:
    world = World(credentials, OF_TOKEN, OF_ADDRESS)
    before = world.who()
    failure = world.caller.show(text)

    assert failure
    assert failure.detail == why
    assert world.who() == before


def test_the_shared_key_counts_last() -> None:
    world = World(FAR)
    assert world.who() == (None, None)
    world.caller.show_key()
    assert world.who() == (KEY_HOLDER.name, AuthMethod.KEY)
    world.renew(OF_ADDRESS)
    assert world.who() == ("lan", AuthMethod.ADDRESS)
    world.renew()
    assert world.who() == (KEY_HOLDER.name, AuthMethod.KEY)


def test_new_rules_are_seen_at_once() -> None:
    world = World(FAR, OF_ADDRESS)
    world.renew(OF_TOKEN)
    assert world.who() == (None, None)
    world.renew(OF_TOKEN, OF_ADDRESS)
    assert world.who() == ("lan", AuthMethod.ADDRESS)
