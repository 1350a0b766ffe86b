"""Rules: which identity a client has, according to what it has shown."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from aggregator import address
from aggregator.access import token, users
from aggregator.access.identity import ADMINISTRATOR, ANONYMOUS, AuthMethod, Identity
from aggregator.config import Anonymous

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Stanza:
    """An identity, and what proves it."""

    identity: Identity
    digests: tuple[str, ...] = ()
    """The SHA-256 of each of its tokens."""
    certificates: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    uids: tuple[int, ...] = ()


class Claims(Protocol):
    """What the network knows of a client."""

    @property
    def address(self) -> str | None: ...
    @property
    def uid(self) -> int | None: ...
    @property
    def certificate(self) -> tuple[str, ...]: ...
    @property
    def is_local(self) -> bool: ...


class Known(NamedTuple):
    """A client's identity, and how it is known."""

    identity: Identity
    by: AuthMethod


@dataclass(frozen=True, slots=True)
class Rules:
    """All identities, and what happens to clients that have none."""

    stanzas: Sequence[Stanza] = ()
    anonymous: Anonymous = Anonymous.LOOPBACK
    own_uid: int | None = None
    """The user that the server runs as."""
    _digests: dict[str, Identity] = field(default_factory=dict, init=False)
    _certificates: dict[str, Identity] = field(default_factory=dict, init=False)
    _uids: dict[int, Identity] = field(default_factory=dict, init=False)
    _networks: dict[Network, Identity] = field(default_factory=dict, init=False)
    _widths: dict[int, list[int]] = field(default_factory=dict, init=False)
    """The prefix lengths of these networks by IP version, the narrowest network first."""

    def __post_init__(self) -> None:
        for stanza in self.stanzas:
            self._digests.update(dict.fromkeys(stanza.digests, stanza.identity))
            self._certificates.update(dict.fromkeys(stanza.certificates, stanza.identity))
            self._uids.update(dict.fromkeys(stanza.uids, stanza.identity))
            self._networks.update(dict.fromkeys(stanza.networks, stanza.identity.only_publishing()))
        for version in (4, 6):
            widths = {network.prefixlen for network in self._networks if network.version == version}
            self._widths[version] = sorted(widths, reverse=True)

    @property
    def has_addresses(self) -> bool:
        """Whether any identity is known by an address."""
        return bool(self._networks)

    def identify(self, client: Claims) -> Known | None:
        """The identity of a client that has not sent anything; None: the client has to authenticate."""
        if client.certificate:
            found = next((one for name in client.certificate if (one := self._certificates.get(name))), None)
            if found:
                return Known(found, AuthMethod.CERTIFICATE)
        else:
            if client.uid is not None and (found := self._by_uid(client.uid)):
                return Known(found, AuthMethod.UID)
            if client.address is not None and (found := self._by_address(client.address)):
                return Known(found, AuthMethod.ADDRESS)
            if self.anonymous is Anonymous.LOOPBACK and client.is_local:
                return Known(ANONYMOUS, AuthMethod.ANONYMOUS)
        return Known(ANONYMOUS, AuthMethod.ANONYMOUS) if self.anonymous is Anonymous.ALL else None

    def by_token(self, text: str) -> Identity | None:
        """The identity with this token."""
        return self.by_digest(token.digest(text)) if token.is_token(text) else None

    def by_digest(self, digest: str) -> Identity | None:
        """The identity with a token of this digest."""
        return self._digests.get(digest)  # its timing can tell only about the digest, which leads back to no token

    def _by_uid(self, uid: int) -> Identity | None:
        return self._uids.get(uid) or (ADMINISTRATOR if uid in (users.SUPERUSER, self.own_uid) else None)

    def _by_address(self, text: str) -> Identity | None:
        known = address.parsed(text)
        for width in self._widths[known.version]:
            if found := self._networks.get(ipaddress.ip_network((known, width), strict=False)):
                return found
        return None
