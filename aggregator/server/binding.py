"""Which sockets the ports of one server get, and which of them may be served."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from aggregator.access.rules import Rules
from aggregator.config import Anonymous, Config
from aggregator.server import activation, sockets
from aggregator.server.port import FORWARD, PORTS, Port
from aggregator.server.sockets import Bound


def inherited(environment: MutableMapping[str, str]) -> dict[Port, Bound]:
    """The sockets that a service manager has passed in. Raises activation.BadSocket."""
    found = activation.inherited(PORTS, environment)
    return {port: Bound(passed_in, lives_on=True) for port, passed_in in found.items()}


async def bind(config: Config, inherited: Mapping[Port, Bound]) -> dict[Port, Bound]:
    """The sockets of every port that is wanted; those that were passed in are not bound again. Raises CannotListen."""
    bound: dict[Port, Bound] = {}
    try:
        for port in PORTS:
            if port in inherited:
                bound[port] = inherited[port]
            elif (number := port.number(config)) is not None:
                bound[port] = Bound(await sockets.bind(port, port.host(config), number))
            elif path := port.path(config):
                bound[port] = sockets.bind_path(port, path, int(config.socket_mode, 8))
    except BaseException:
        remove_files(bound)
        raise
    return bound


def remove_files(bound: Mapping[Port, Bound]) -> None:
    """Remove the files of unix sockets."""
    for one in bound.values():
        if one.file:
            one.file.remove()


def why_not_open(bound: Mapping[Port, Bound], rules: Rules, forward_key: bytes | None) -> str | None:
    """Why these sockets may not be served: other machines can reach one, and nothing there says who they are.

    None: they may be served.
    """
    if rules.anonymous is Anonymous.ALL or rules.has_addresses:
        return None
    asks_nobody = [port for port in bound if not port.tls and not (port is FORWARD and forward_key)]
    names = " and ".join(name for port in asks_nobody for name in reachable(bound[port]))
    if not names:
        return None
    what = "would let anybody in"
    if rules.anonymous is Anonymous.NONE:
        what = "would let nobody in, because tokens are not accepted there"
    return f"{names} {what}: set --tls-port, rules in --identities, or --anonymous all"


def reachable(bound: Bound) -> list[str]:
    """The addresses of a port that other machines can reach. Without TLS, all that is sent can be read on the way."""
    return [sockets.name(one) for one in bound.sockets if sockets.is_reachable(one)]
