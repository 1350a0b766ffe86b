"""Network addresses as text: as an administrator writes them, and as the log shows them."""

from __future__ import annotations

import ipaddress
from typing import Final

EVERYWHERE: Final = ("0.0.0.0", "::", "*")  # noqa: S104 (nothing is bound here)
"""The texts that mean every address of this machine: IPv4, IPv6 with IPv4, whichever of them exists."""

_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}  # noqa: S104
_MAPPED: Final = "::ffff:"


def join(host: str, port: int) -> str:
    """``HOST:PORT``; an IPv6 address is put in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(joined: str) -> str:
    """The host in a text that ``join`` made; "unknown" if there is none."""
    return without_brackets(joined.rpartition(":")[0]) or "unknown"


def without_brackets(text: str) -> str:
    """``[::1]`` as ``::1``; anything else as it is."""
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def unmapped(host: str) -> str:
    """Plain IPv4 for an IPv4 peer that an IPv6 socket has accepted (``::ffff:192.0.2.1``); other hosts as they are."""
    return host.removeprefix(_MAPPED) if "." in host else host


def parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IP address, without the zone that a link-local one may have (``fe80::1%eth0``). Raises ValueError."""
    return ipaddress.ip_address(host.partition("%")[0])


def is_loopback(host: str) -> bool:
    """Whether this is a loopback address, which no other machine can reach."""
    return parsed(host).is_loopback


def loopback_of(host: str) -> str:
    """The address at which a client on this machine finds a server that listens on ``host``."""
    return _LOOPBACK.get(host, host)
