"""Listening sockets that a service manager has made and passes in. It keeps them when this process ends.

The protocol is that of sd_listen_fds(3). ``LISTEN_FDS`` descriptors, from 3 on, are for the process ``LISTEN_PID``.
Their names are in ``LISTEN_FDNAMES``, separated by colons; a name says which port its descriptor is for
(``Port.descriptor``). Clients that connect while no server runs wait in the socket's backlog.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Final

from aggregator.server.port import Port

log = logging.getLogger("aggregator")

FIRST_DESCRIPTOR: Final = 3
"""SD_LISTEN_FDS_START."""

_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class BadSocket(Exception):
    """A descriptor that was passed in cannot be served; the text says why in one line, for an administrator."""


def inherited(ports: Sequence[Port], environment: MutableMapping[str, str]) -> dict[Port, list[socket.socket]]:
    """The listening sockets that were passed to this process, by port. Raises BadSocket.

    The variables are removed from the environment, because they are for this process only.
    """
    pid, count, names = (environment.pop(name, "") for name in _VARIABLES)
    if not count:
        return {}
    if pid != str(os.getpid()):
        log.warning("LISTEN_FDS is ignored: it is for process %s, and this is %d", pid or "(none)", os.getpid())
        return {}
    if not count.isdecimal():
        raise BadSocket(f"LISTEN_FDS: expected a number, got {count!r}")
    found: dict[Port, list[socket.socket]] = {}
    by_name = {port.descriptor: port for port in ports}
    for descriptor, name in zip(_descriptors(int(count)), _names(names, int(count)), strict=True):
        if name not in by_name:
            expected = ", ".join(by_name)
            raise BadSocket(f"descriptor {descriptor} is named {name!r}: FileDescriptorName must be one of {expected}")
        port = by_name[name]
        found.setdefault(port, []).append(_listening(descriptor, port))
    return found


def _descriptors(count: int) -> range:
    return range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + count)


def _names(text: str, count: int) -> Iterator[str]:
    """A name for each descriptor; "unknown" for a descriptor without one, as in systemd."""
    names = text.split(":") if text else []
    yield from (names + ["unknown"] * count)[:count]


def _listening(descriptor: int, port: Port) -> socket.socket:
    shown = f"descriptor {descriptor} ({port.descriptor})"
    try:
        one = socket.socket(fileno=descriptor)  # finds out its family and type
    except OSError as error:
        raise BadSocket(f"{shown} is not a socket: {os.strerror(error.errno or 0)}") from error
    is_listening = one.type == socket.SOCK_STREAM and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    families = (socket.AF_UNIX,) if port.unix else (socket.AF_INET, socket.AF_INET6)
    if one.family not in families or not is_listening:
        one.detach()
        kind = "unix" if port.unix else "TCP"
        raise BadSocket(f"{shown} is not a listening {kind} socket (set Accept=no, ListenStream=)")
    one.set_inheritable(False)
    one.setblocking(False)
    return one
