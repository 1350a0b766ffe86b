"""Marks all tests here as fault tests, and makes the disks that they break and the network that they cut."""

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
    """A thing that some machines cannot make."""

    def make(self) -> str | None:
        """Make it; if that is not possible here, return why."""

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
    """A separate disk, whose content can be inspected as a power cut would leave it."""
    yield from made(Ext4Image(tmp_path / "disk.img", tmp_path / "disk"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk that soon is full, and can be enlarged."""
    yield from made(SmallDisk(tmp_path / "small"))


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[FailingDisk]:
    """A disk that breaks down when it is told to."""
    yield from made(FailingDisk(tmp_path))


@pytest.fixture
def network() -> Iterator[Network]:
    """Two machines, and a cable between them that can be cut and throttled."""
    yield from made(Network())
