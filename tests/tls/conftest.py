"""Fixtures: a CA, and servers with TLS ports."""

from __future__ import annotations

import pytest

from tests.harness.certificates import Authority, Pair
from tests.harness.server_process import ServerProcess, StartServer


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The CA of the server and of its true clients."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def pair(authority: Authority) -> Pair:
    """The server's certificate."""
    return authority.server()


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA that no test server trusts; it has the same name."""
    return Authority(tmp_path_factory.mktemp("foreign"))


TLS_PORTS = ("--tls-host", "127.0.0.1", "--tls-port", "0", "--tls-silent-port", "0")


@pytest.fixture
def start_tls(pair: Pair, new_server: StartServer) -> StartServer:
    """Make a server with TLS ports and these options, and start it."""

    def start(*options: str, certificate: Pair | None = None, **settings: object) -> ServerProcess:
        return new_server(*TLS_PORTS, *(certificate or pair).options, *options, **settings).start()

    return start


@pytest.fixture(params=["uvloop", "asyncio"])
def tls_server(request: pytest.FixtureRequest, start_tls: StartServer) -> ServerProcess:
    """A running server with TLS ports, once on each event loop."""
    return start_tls(loop=request.param)
