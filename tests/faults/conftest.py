"""How large the fault tests are, where their figures go, and the disks they break.

Three environment variables, for whoever runs them by hand:

- ``AGGREGATOR_FAULTS=long``: as many rounds as a release deserves, instead of what CI has time for;
- ``AGGREGATOR_FAULTS_RESULT=FILE``: append what each test has measured, one JSON object a line;
- ``AGGREGATOR_FAULTS_SEED=NUMBER``: the random moments of an earlier run, which printed it.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import pytest

from tests.faults.disk import Ext4Image, FailingDisk, SmallDisk

LONG: Final = os.environ.get("AGGREGATOR_FAULTS") == "long"


def _size(ci: int, long: int) -> int:
    return long if LONG else ci


KILL_ROUNDS: Final = _size(20, 100)  # T1
POWER_CUT_ROUNDS: Final = _size(3, 20)  # T2
CONTROL_ROUNDS: Final = _size(2, 20)  # T3
EIO_STEP: Final = _size(10, 1)  # T5: every how many of the first 30 syncs
SWEEP_STEP: Final = _size(30, 1)  # T10, T11: every how many system calls, behind the first few
SLOW_COMMITS: Final = _size(4, 30)  # T8: of each of 8 clients
STALL_S: Final = _size(12, 60)  # T40
HELD_S: Final = _size(3, 60)  # T14
LOCKED_S: Final = _size(6, 60)  # T15: beside 3 s
BIT_FLIPS: Final = _size(8, 50)  # T17: in the header, and anywhere
GAP_ROUNDS: Final = _size(8, 40)  # T12
DRAIN_KILL_ROUNDS: Final = _size(10, 50)  # T44

ACCOUNTED_LINES: Final = _size(2_000, 10_000)  # T22: of each of 8 clients
STREAM_EXAMPLES: Final = _size(500, 5_000)  # T23: over a socket; 5,000 always without one, in test_protocol.py
MUTATED_LINES: Final = 200_000  # T28
NEMESIS_ROUNDS: Final = _size(2, 20)  # T29
STOPPED_S: Final = _size(2, 10)  # T29
UNREAD_EVENTS: Final = _size(60_000, 200_000)  # T30: enough for its buffer and the kernel's to be full
RESETS: Final = 1_000  # T35: on each loop
CUT_S: Final = _size(5, 30)  # T36
POLITE_S: Final = _size(2, 10)  # T30, T31, T37, T38: how long latencies are measured
CHURN: Final = _size(4_000, 20_000)  # T39
SOAK_S: Final = _size(45, 1_800)  # T41: 45 s show a leak of 5 bytes an event, and CI has 4 minutes for all of this
FUZZ_S: Final = _size(30, 600)

LONG_TIMEOUT_S: Final = 3_600
"""A test of the long run may take this, instead of the usual time limit of a test."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.fault)
            if LONG:
                item.add_marker(pytest.mark.timeout(LONG_TIMEOUT_S))


@pytest.fixture
def moments() -> random.Random:
    """Random moments for faults. The seed is printed, and shown when the test fails."""
    seed = int(os.environ.get("AGGREGATOR_FAULTS_SEED") or random.SystemRandom().getrandbits(32))
    print(f"AGGREGATOR_FAULTS_SEED={seed}")
    return random.Random(seed)


class RecordFigures(Protocol):
    def __call__(self, name: str, **figures: float | str) -> None: ...


@pytest.fixture
def record_figures(request: pytest.FixtureRequest) -> RecordFigures:
    """Keep what a test has measured: printed, and appended to the file of ``AGGREGATOR_FAULTS_RESULT``."""

    def record(name: str, **figures: float | str) -> None:
        line = json.dumps({"name": name, "test": request.node.nodeid, **figures}) + "\n"
        print(line, end="")
        if path := os.environ.get("AGGREGATOR_FAULTS_RESULT"):
            with Path(path).open("a") as file:  # one short write at the end: tests run beside each other
                file.write(line)

    return record


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
