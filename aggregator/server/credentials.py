"""What the network itself knows of a client: where it is, which user it is, and whom its certificate names."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import Any, Final

from aggregator import address
from aggregator.access import users

_UCRED: Final = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one client has proved about itself without sending a line."""

    address: str | None
    """The IP address of the peer; None on a unix socket."""
    uid: int | None = None
    """The user at the other end of a unix socket (SO_PEERCRED); None where the kernel can't tell."""
    certificate: tuple[str, ...] = ()
    """The names of its verified certificate, each as "DNS:web-1" or "CN:web-1"; empty without a certificate."""
    tls: str | None = None
    """The version of TLS, as "TLSv1.3"; None without TLS."""
    is_unix: bool = False
    """Whether it is on a unix socket, even if its user is not known."""

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine: on a unix socket, or at a loopback address."""
        if self.address is None:
            return self.is_unix
        return address.is_loopback(self.address)

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read along, so that a secret may be accepted."""
        return self.tls is not None or self.is_local


def of(transport: asyncio.BaseTransport) -> Credentials:
    """The credentials of the client at the other end; those of an unknown client if it is gone already."""
    known = transport.get_extra_info("credentials")
    if isinstance(known, Credentials):
        return known
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        return Credentials(None, _uid(sock), is_unix=True)
    name = transport.get_extra_info("peername")
    return Credentials(address.unmapped(name[0]) if name else None)


def over_tls(plain: asyncio.BaseTransport, tls: ssl.SSLObject) -> Credentials:
    """The credentials after a TLS handshake. Raises ValueError if a name in the certificate is not text."""
    return Credentials(of(plain).address, None, _names(tls.getpeercert()), tls.version())


def _names(certificate: Any) -> tuple[str, ...]:
    if not certificate:
        return ()
    alternative = [f"DNS:{name}" for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"]
    parts = [part for parts in certificate.get("subject", ()) for part in parts]
    return (*alternative, *(f"CN:{name}" for kind, name in parts if kind == "commonName"))


def _uid(sock: socket.socket) -> int | None:
    try:
        _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except OSError:
        return None
    return None if uid == users.overflow_uid() else int(uid)
