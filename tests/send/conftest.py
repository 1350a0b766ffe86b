"""Runs of ``aggregator send`` that never outlive their test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import wire
from tests.harness.sending import Running, Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    runs: list[Running] = []

    def start_run(port: int, *arguments: str | Path) -> Running:
        runs.append(Running(port, *arguments, stderr=tmp_path / f"stderr{len(runs)}"))
        return runs[-1]

    yield start_run
    for one in runs:
        one.process.kill()
        one.process.wait()
        with contextlib.suppress(BrokenPipeError):
            one.stdin.close()


@pytest.fixture
def free_port() -> int:
    return wire.free_port()
