"""PostgreSQL for tests, as a pytest plugin: clusters that end with their test, and one cluster that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import postgres
from tests.harness.postgres import Cluster, StartCluster


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark each test that runs PostgreSQL, which its fixtures show."""
    if not {"start_cluster", "shared_cluster", "shared_pair"}.isdisjoint(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.postgres)


@pytest.fixture(scope="session")
def postgres_installed() -> None:
    """Skip the test where PostgreSQL cannot be run."""
    if reason := postgres.missing():
        pytest.skip(reason)


@pytest.fixture
def start_cluster(postgres_installed: None) -> Iterator[StartCluster]:
    """Start a primary with this many standbys, and with these settings of PostgreSQL."""
    clusters: list[Cluster] = []

    def start(standbys: int = 0, **settings: str) -> Cluster:
        clusters.append(Cluster(standbys, **settings))
        return clusters[-1].start()

    yield start
    for cluster in clusters:
        cluster.end()


@pytest.fixture(scope="session")
def shared_cluster(postgres_installed: None) -> Iterator[Cluster]:
    """A primary alone, for all tests of a process that do it no harm. Each test uses its own database."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_pair(postgres_installed: None) -> Iterator[Cluster]:
    """The same, with a standby that the primary waits for."""
    with Cluster(1) as cluster:
        yield cluster


@pytest.fixture
def database(shared_cluster: Cluster) -> str:
    """The URL of a new database of the cluster that all tests share."""
    return shared_cluster.primary.url(shared_cluster.new_database())
