"""The identity of a client, by the credentials that it has shown."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.access import token
from aggregator.access.identity import ADMINISTRATOR, ANONYMOUS, AuthMethod, Identity, Permission
from aggregator.access.rules import Rules, Stanza
from aggregator.access.topics import Topics
from aggregator.config import Anonymous
from aggregator.server.credentials import Credentials

OWN_UID = 4242
TOKEN = token.new()

WEB = Identity("web", Topics(["web.*"]), Topics(["web.*"]), frozenset({Permission.MONITOR}))
LAN = Identity("lan", Topics(["lan.*"]), Topics(["lan.*"]), frozenset({Permission.ADMIN}))
HOST = Identity("host", Topics(["host.*"]))
STANZAS = [
    Stanza(WEB, digests=(token.digest(TOKEN),), certificates=("DNS:web-1", "CN:web"), uids=(1001,)),
    Stanza(LAN, networks=(ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8"))),
    Stanza(HOST, networks=(ipaddress.ip_network("10.1.2.3"), ipaddress.ip_network("127.0.0.9"))),
]


def rules(anonymous: Anonymous) -> Rules:
    return Rules(STANZAS, anonymous, OWN_UID)


@pytest.mark.parametrize(
    ("credentials", "with_loopback_none_all", "by"),
    [
        (Credentials("127.0.0.1"), ("anonymous", None, "anonymous"), AuthMethod.ANONYMOUS),
        (Credentials("::1"), ("anonymous", None, "anonymous"), AuthMethod.ANONYMOUS),
        (Credentials("127.0.0.1", tls="TLSv1.3"), ("anonymous", None, "anonymous"), AuthMethod.ANONYMOUS),
        (Credentials(None, 4711, is_unix=True), ("anonymous", None, "anonymous"), AuthMethod.ANONYMOUS),
        (Credentials(None, None), (None, None, "anonymous"), AuthMethod.ANONYMOUS),
        (Credentials(None, None, is_unix=True), ("anonymous", None, "anonymous"), AuthMethod.ANONYMOUS),
        (Credentials("192.0.2.1"), (None, None, "anonymous"), AuthMethod.ANONYMOUS),
        (Credentials("fe80::1%eth0"), (None, None, "anonymous"), AuthMethod.ANONYMOUS),
        (Credentials("192.0.2.1", tls="TLSv1.3"), (None, None, "anonymous"), AuthMethod.ANONYMOUS),
        (
            Credentials("192.0.2.1", certificate=("DNS:x",), tls="TLSv1.3"),
            (None, None, "anonymous"),
            AuthMethod.ANONYMOUS,
        ),
        (
            Credentials("127.0.0.1", certificate=("DNS:x",), tls="TLSv1.3"),
            (None, None, "anonymous"),
            AuthMethod.ANONYMOUS,
        ),
        (
            Credentials("10.1.0.7", certificate=("DNS:x",), tls="TLSv1.3"),
            (None, None, "anonymous"),
            AuthMethod.ANONYMOUS,
        ),
        (Credentials("10.1.0.7", certificate=("DNS:web-1",), tls="TLSv1.2"), ("web",) * 3, AuthMethod.CERTIFICATE),
        (Credentials("10.1.0.7", certificate=("DNS:x", "CN:web"), tls="TLSv1.2"), ("web",) * 3, AuthMethod.CERTIFICATE),
        (
            Credentials("1.1.1.1", certificate=("DNS:WEB-1",), tls="TLSv1.2"),
            (None, None, "anonymous"),
            AuthMethod.ANONYMOUS,
        ),
        (Credentials("10.1.0.7"), ("lan",) * 3, AuthMethod.ADDRESS),
        (Credentials("fd12::1"), ("lan",) * 3, AuthMethod.ADDRESS),
        (Credentials("10.1.2.3"), ("host",) * 3, AuthMethod.ADDRESS),
        (Credentials("127.0.0.9"), ("host",) * 3, AuthMethod.ADDRESS),
        (Credentials(None, 1001), ("web",) * 3, AuthMethod.UID),
        (Credentials(None, 0), ("administrator",) * 3, AuthMethod.UID),
        (Credentials(None, OWN_UID), ("administrator",) * 3, AuthMethod.UID),
    ],
)
def test_who_is_who(credentials: Credentials, with_loopback_none_all: tuple[str | None, ...], by: AuthMethod) -> None:
    for anonymous, name in zip(Anonymous, with_loopback_none_all, strict=True):
        known = rules(anonymous).identify(credentials)
        assert (known and known.identity.name) == name
        assert known is None or known.by is by


def test_an_address_permits_to_publish_and_nothing_else() -> None:
    known = rules(Anonymous.NONE).identify(Credentials("10.1.0.7"))

    assert known
    assert known.identity == Identity("lan", LAN.publish)
    assert not known.identity.has(Permission.ADMIN)
    assert not known.identity.read


def test_a_rule_for_the_servers_own_user_counts_more_than_that_it_is_the_servers() -> None:
    known = Rules([Stanza(WEB, uids=(OWN_UID,))], own_uid=OWN_UID).identify(Credentials(None, OWN_UID))

    assert known
    assert known.identity is WEB


def test_tokens() -> None:
    found = rules(Anonymous.NONE)

    assert found.by_token(TOKEN) is WEB
    assert found.by_digest(token.digest(TOKEN)) is WEB
    assert [found.by_token(text) for text in ("", "x", TOKEN[:-1], TOKEN + "a", TOKEN.upper(), token.new())] == [
        None
    ] * 6
    assert found.by_token(token.digest(TOKEN)) is None, "the file alone lets nobody in"


def test_a_text_that_is_no_token_is_none_even_if_the_file_has_its_digest() -> None:
    assert Rules([Stanza(WEB, digests=(token.digest("hunter2"),))]).by_token("hunter2") is None


def test_what_the_servers_own_identities_may() -> None:
    assert ANONYMOUS.has(Permission.MONITOR)
    assert not ANONYMOUS.has(Permission.ADMIN)
    assert ADMINISTRATOR.has(Permission.MONITOR)
    assert ADMINISTRATOR.has(Permission.ADMIN)


@pytest.mark.parametrize(
    ("credentials", "is_local", "is_private"),
    [
        (Credentials("127.0.0.1"), True, True),
        (Credentials("127.9.9.9"), True, True),
        (Credentials("::1"), True, True),
        (Credentials(None, 5, is_unix=True), True, True),
        (Credentials(None, None, is_unix=True), True, True),
        (Credentials("10.0.0.1"), False, False),
        (Credentials("10.0.0.1", tls="TLSv1.3"), False, True),
        (Credentials(None, None), False, False),
    ],
)
def test_where_a_token_may_be_taken(credentials: Credentials, is_local: bool, is_private: bool) -> None:
    assert (credentials.is_local, credentials.is_private) == (is_local, is_private)


NETWORK = st.tuples(st.sampled_from(["10.0.0.1", "10.0.1.1", "10.1.0.1", "::1", "fd00::1"]), st.integers(0, 32)).map(
    lambda network: ipaddress.ip_network(network, strict=False)
)


@given(st.lists(NETWORK, unique=True, max_size=6), st.sampled_from(["10.0.0.1", "10.0.1.9", "192.0.2.1", "fd00::2"]))
def test_the_narrowest_network_counts(networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network], at: str) -> None:
    stanzas = [
        Stanza(Identity(f"n{number}", Topics(["*"])), networks=(network,)) for number, network in enumerate(networks)
    ]
    around = [number for number, network in enumerate(networks) if ipaddress.ip_address(at) in network]
    known = Rules(stanzas, Anonymous.NONE).identify(Credentials(at))

    if not around:
        assert known is None
    else:
        assert known
        assert known.identity.name == f"n{max(around, key=lambda number: networks[number].prefixlen)}"
