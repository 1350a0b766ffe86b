"""All tests here are fault tests; random moments for them, and the disks they break."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.disk import Ext4Image, FailingDisk, SmallDisk
from tests.faults.record import RecordProperty
from tests.faults.sizes import LONG, LONG_TIMEOUT_S


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.fault)
            if LONG:
                item.add_marker(pytest.mark.timeout(LONG_TIMEOUT_S))


@pytest.fixture
def moments(record_property: RecordProperty) -> random.Random:
    """Random moments for faults. The seed is printed, and so shown when the test fails, and stands in the result."""
    seed = int(os.environ.get("AGGREGATOR_FAULTS_SEED") or random.SystemRandom().getrandbits(32))
    print(f"AGGREGATOR_FAULTS_SEED={seed}")
    record_property("seed", seed)
    return random.Random(seed)


@pytest.fixture
def ext4_image(tmp_path: Path) -> Iterator[Ext4Image]:
    """A disk of its own, whose content can be looked at as a power cut would leave it."""
    image = Ext4Image(tmp_path / "disk.img", tmp_path / "disk")
    if reason := image.make():
        pytest.skip(f"cannot mount an image here: {reason}")
    yield image
    image.remove()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk that is soon full, and can be enlarged."""
    disk = SmallDisk(tmp_path / "small")
    if reason := disk.make():
        pytest.skip(f"cannot mount a tmpfs here: {reason}")
    yield disk
    disk.remove()


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[FailingDisk]:
    """A disk that breaks down when it is told to."""
    disk = FailingDisk(tmp_path)
    if reason := disk.make():
        disk.remove()
        pytest.skip(f"cannot mount an image here: {reason}")
    yield disk
    disk.remove()
