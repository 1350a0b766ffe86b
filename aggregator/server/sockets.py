"""What an administrator calls a host and a port, or a path, as bound sockets. Those of a host do not listen yet."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from aggregator import address
from aggregator.server.port import Port

log = logging.getLogger("aggregator")

_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Errors at which one of a name's addresses is left out: ``localhost`` means ::1 too, even on machines without IPv6."""

_Address: TypeAlias = tuple[socket.AddressFamily, tuple[Any, ...]]  # the second as ``socket.bind`` takes it


class CannotListen(Exception):
    """An address cannot be listened on; the text says why in one line, for an administrator."""

    def __init__(self, where: str, option: str, why: OSError | UnicodeError | str) -> None:
        reason = _reason(why) if isinstance(why, Exception) else why
        super().__init__(f"cannot listen on {where} ({option}): {reason}")


@dataclass(frozen=True, slots=True)
class Bound:
    """The sockets of one port. ``lives_on``: another process has them too, so clients can wait in their backlog."""

    sockets: Sequence[socket.socket]
    lives_on: bool = False
    file: SocketFile | None = None


@dataclass(frozen=True, slots=True)
class SocketFile:
    """The file of a unix socket that was bound here."""

    path: Path
    device: int
    inode: int

    def remove(self) -> None:
        """Remove the file, unless another file has taken its place."""
        with contextlib.suppress(OSError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                self.path.unlink()


def bind_path(port: Port, path: Path, mode: int) -> Bound:
    """A unix socket at ``path``. Whoever may write to its file may connect. Raises CannotListen.

    The file of a server that was killed is replaced, because nobody listens there. The new socket listens at once, so
    that another server that is started now does not take its file for that of a killed server.
    """
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_room(path)
        one.bind(str(path))
        path.chmod(mode)  # before the socket listens, so nobody has connected
        found = path.lstat()
        one.listen(1)
    except OSError as error:
        one.close()
        raise CannotListen(str(path), port.option, error) from error
    return Bound([one], file=SocketFile(path, found.st_dev, found.st_ino))


async def bind(port: Port, host: str, number: int) -> list[socket.socket]:
    """A socket for each address that ``host`` means; 0 is any free port. Raises CannotListen."""
    bound: list[socket.socket] = []
    left_out: list[CannotListen] = []
    for family, where in await _addresses(port, host, number):
        try:
            bound.append(_bound(family, where, with_ipv4=host in address.EVERYWHERE))
        except OSError as error:
            failure = CannotListen(address.join(where[0], number), port.option, error)
            if error.errno not in _NOT_HERE:
                raise failure from error
            left_out.append(failure)
        else:
            if host == "*":
                break
    if not bound:
        raise left_out[0]
    for failure in left_out:
        log.warning("%s; left out", failure)
    return bound


def name(one: socket.socket) -> str:
    """The address of a socket, for the log."""
    where = one.getsockname()
    return where if one.family == socket.AF_UNIX else address.join(*where[:2])


def is_reachable(one: socket.socket) -> bool:
    """Whether other machines can reach this socket."""
    return one.family != socket.AF_UNIX and not address.is_loopback(one.getsockname()[0])


def _make_room(path: Path) -> None:
    """Remove a socket file that nobody listens at. Raises OSError if something else is there."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog means that somebody listens
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    path.unlink()


async def _addresses(port: Port, host: str, number: int) -> list[_Address]:
    if host == "*":  # ``bind`` takes the first of these that exists here
        return [(socket.AF_INET6, ("::", number)), (socket.AF_INET, ("0.0.0.0", number))]  # noqa: S104 (by request)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise CannotListen(address.join(host, number), port.host_option, error) from error
    addresses: list[_Address] = list(dict.fromkeys((family, where) for family, _, _, _, where in found))
    if host not in address.EVERYWHERE and any(_is_everywhere(where[0]) for _, where in addresses):
        why = f"that means every address of this machine: use {_ANY_OF_THEM}"
        raise CannotListen(address.join(host, number), port.host_option, why)
    return addresses


_ANY_OF_THEM: Final = "{}, {} or {}".format(*address.EVERYWHERE)


def _is_everywhere(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return address.parsed(text).is_unspecified
    return False


def _bound(family: socket.AddressFamily, where: tuple[Any, ...], with_ipv4: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier server may linger
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not with_ipv4)
        one.bind(where)
    except BaseException:
        one.close()
        raise
    return one


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)
    return str(error)
