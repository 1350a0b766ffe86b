"""Fixtures for all tests: real servers, each of which is ended with its test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

from tests.harness.server_process import ServerProcess, StartServer

settings.register_profile("aggregator", deadline=None, derandomize=True)  # machines are noisy; runs are repeatable
settings.load_profile("aggregator")

pytest_plugins = ["tests.harness.record", "tests.harness.postgres_fixtures"]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the variables of the fault tests: a server warns of each AGGREGATOR_ variable that it does not know."""
    for name in ("AGGREGATOR_FAULTS", "AGGREGATOR_FAULTS_RESULT"):
        monkeypatch.delenv(name, raising=False)


SERVER_ENGINES: Final = {
    "sqlite": pytest.param("sqlite"),
    "postgresql": pytest.param("postgresql", marks=pytest.mark.postgres),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that is marked ``engines`` runs its servers on each engine, or on those that the marker names."""
    if "server_engine" in metafunc.fixturenames and (mark := metafunc.definition.get_closest_marker("engines")):
        engines = [SERVER_ENGINES[name] for name in mark.args or SERVER_ENGINES]
        metafunc.parametrize("server_engine", engines, indirect=True)


@pytest.fixture
def server_engine(request: pytest.FixtureRequest) -> str:
    """The engine on which the servers of a test store their events."""
    return getattr(request, "param", "sqlite")


@pytest.fixture
def new_server(request: pytest.FixtureRequest, tmp_path: Path, server_engine: str) -> Iterator[StartServer]:
    """Make a server with these options, without starting it. Each server has its own folder and its own store."""
    servers: list[ServerProcess] = []

    def new(*options: str, **settings: object) -> ServerProcess:
        if server_engine == "postgresql" and not {"db", "url"} & settings.keys():
            cluster = request.getfixturevalue("shared_cluster")
            settings["url"] = cluster.primary.url(cluster.new_database())
        folder = tmp_path / f"server{len(servers)}"
        folder.mkdir()
        servers.append(ServerProcess(folder, *options, **settings))  # type: ignore[arg-type]
        return servers[-1]

    yield new
    for server in servers:
        server.end()


@pytest.fixture
def start_server(new_server: StartServer) -> StartServer:
    """Make a server with these options, and start it."""
    return lambda *options, **settings: new_server(*options, **settings).start()


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    """A running server with default options, on free ports."""
    return start_server()


@pytest.fixture(params=["uvloop", "asyncio"])
def server_on_both_loops(request: pytest.FixtureRequest, start_server: StartServer) -> ServerProcess:
    """A running server with default options, once on each event loop."""
    return start_server(loop=request.param)


GROUPS = ("container", "fault", "netcat", "postgres", "producer", "root", "shipper")
"""Markers of tests that are skipped where a program or a permission is missing. In CI none may be missing."""

_passed: set[str] = set()
_skipped: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped or (report.passed and report.when == "call"):
        (_skipped if report.skipped else _passed).update(group for group in GROUPS if group in report.keywords)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail in CI if every test of a group was skipped, because such a run checks nothing."""
    if os.environ.get("CI") and (empty := _skipped - _passed):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nall tests were skipped in: {', '.join(sorted(empty))}")
