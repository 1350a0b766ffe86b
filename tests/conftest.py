"""Fixtures for all tests: real servers that never outlive their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.server_process import ServerProcess

settings.register_profile("aggregator", deadline=None, derandomize=True)  # machines are noisy; runs are repeatable
settings.load_profile("aggregator")

StartServer = Callable[..., ServerProcess]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start a server with these options; several may be started, each in a folder of its own."""
    servers: list[ServerProcess] = []

    def start(*options: str, **settings: object) -> ServerProcess:
        folder = tmp_path / f"server{len(servers)}"
        folder.mkdir()
        server = ServerProcess(folder, *options, **settings)  # type: ignore[arg-type]
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.end()


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    """A running server with default options, on free ports."""
    return start_server()


@pytest.fixture(params=["uvloop", "asyncio"])
def server_on_both_loops(request: pytest.FixtureRequest, start_server: StartServer) -> ServerProcess:
    """The same, once on each event loop."""
    return start_server(loop=request.param)
