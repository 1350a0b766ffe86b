"""Clients that a server takes for others, by the loopback address that they have bound (``changes``)."""

from __future__ import annotations

from typing import Final

from aggregator.server.credentials import Credentials

STRANGER: Final = "127.0.0.2"
"""On another machine, over a plain connection."""
STRANGER_TLS: Final = "127.0.0.3"
"""On another machine, over TLS."""
KNOWN_ADDRESS: Final = "127.0.0.4"
CERTIFICATE: Final = "127.0.0.5"
FOREIGN_CERTIFICATE: Final = "127.0.0.6"
"""A certificate of the right authority, not named by any rule."""
KNOWN_USER: Final = "127.0.0.7"
OTHER_USER: Final = "127.0.0.8"
SUPERUSER: Final = "127.0.0.9"

ELSEWHERE: Final = {
    STRANGER: Credentials("10.9.9.9"),
    STRANGER_TLS: Credentials("10.9.9.9", tls="TLSv1.3"),
    KNOWN_ADDRESS: Credentials("10.1.0.7"),
    CERTIFICATE: Credentials("10.9.9.9", certificate=("DNS:web-1", "CN:web-1"), tls="TLSv1.3"),
    FOREIGN_CERTIFICATE: Credentials("10.9.9.9", certificate=("DNS:other",), tls="TLSv1.3"),
    KNOWN_USER: Credentials(None, 1001, is_unix=True),
    OTHER_USER: Credentials(None, 4711, is_unix=True),
    SUPERUSER: Credentials(None, 0, is_unix=True),
}
