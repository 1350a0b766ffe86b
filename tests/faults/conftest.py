"""All tests here are fault tests; random moments for them, the disks that they break, and the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from tests.harness.disk import Ext4Image, FailingDisk, SmallDisk
from tests.harness.network import Network
from tests.harness.sizes import LONG, LONG_TIMEOUT_S


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.fault)
            if LONG:
                item.add_marker(pytest.mark.timeout(LONG_TIMEOUT_S))


class Made(Protocol):
    """What a machine may be unable to make."""

    def make(self) -> str | None:
        """Make it; return why that is not possible here, if it is not."""

    def remove(self) -> None: ...


M = TypeVar("M", bound=Made)


def made(thing: M) -> Iterator[M]:
    """Make it for one test, or skip the test."""
    reason = thing.make()
    try:
        if reason:
            pytest.skip(f"cannot make a {type(thing).__name__} here: {reason}")
        yield thing
    finally:
        thing.remove()


@pytest.fixture
def ext4_image(tmp_path: Path) -> Iterator[Ext4Image]:
    """A disk of its own, whose content can be looked at as a power cut would leave it."""
    yield from made(Ext4Image(tmp_path / "disk.img", tmp_path / "disk"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk that is soon full, and can be enlarged."""
    yield from made(SmallDisk(tmp_path / "small"))


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[FailingDisk]:
    """A disk that breaks down when it is told to."""
    yield from made(FailingDisk(tmp_path))


@pytest.fixture
def network() -> Iterator[Network]:
    """Two machines, and a cable between them that can be cut and throttled."""
    yield from made(Network())
