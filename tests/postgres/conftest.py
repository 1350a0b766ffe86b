"""Tests of the second engine. Those that break something record their figures, and are fault tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.sizes import LONG, LONG_TIMEOUT_S


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and "record_figures" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.fault)
            if LONG:
                item.add_marker(pytest.mark.timeout(LONG_TIMEOUT_S))
