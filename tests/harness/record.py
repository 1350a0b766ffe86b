"""The findings of the fault tests, in one result file: a pytest plugin for ``AGGREGATOR_FAULTS_RESULT=FILE``.

The figures of a test, and the faults that its docstring names, are attached to its reports. With xdist they thereby
reach the process that writes the file.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pytest

from bench import result
from tests.harness import sizes

RecordProperty: TypeAlias = Callable[[str, object], None]

_ADDED_UP = (
    "rounds", "sent", "acked", "stored", "lost", "phantom", "duplicate", "corrupt", "replies",
    "delivered", "doubled", "disordered",
)  # fmt: skip
_WORST = ("recovery_s",)


class RecordFigures(Protocol):
    def __call__(self, name: str, *, rounds: float = 1, **figures: float | str) -> None: ...


@pytest.fixture
def record_figures(record_property: RecordProperty) -> RecordFigures:
    """Record the figures that a test has measured: they are printed, and written to the result file."""

    def record(name: str, *, rounds: float = 1, **figures: float | str) -> None:
        measured = {"name": name, "rounds": rounds} | {
            key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()
        }
        print(measured)
        record_property("measured", measured)

    return record


@pytest.fixture
def moments(record_property: RecordProperty) -> random.Random:
    """Random moments for faults. The seed is printed, so that a failing test shows it, and is part of the result."""
    seed = int(os.environ.get("AGGREGATOR_FAULTS_SEED") or random.SystemRandom().getrandbits(32))
    print(f"AGGREGATOR_FAULTS_SEED={seed}")
    record_property("seed", seed)
    return random.Random(seed)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark each test whose docstring names a fault of the table as a test of that fault, whichever file it is in."""
    text = getattr(item.obj, "__doc__", None) if isinstance(item, pytest.Function) else None
    if faults := list(dict.fromkeys(re.findall(r"\b[RT]\d+\b", text or ""))):
        item.add_marker(pytest.mark.fault)
        item.user_properties.append(("faults", faults))


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("AGGREGATOR_FAULTS_RESULT")
    if path and not hasattr(config, "workerinput"):  # with xdist, the process that started the workers writes the file
        config.pluginmanager.register(ResultFile(Path(path).absolute()))


class ResultFile:
    """Collects the reports of all fault tests, and writes the file at the end of the session."""

    def __init__(self, path: Path) -> None:
        self._path = path
        settings = {name.lower(): value for name, value in vars(sizes).items() if name.isupper()}
        self._result = result.describe("faults", settings, {})  # now, because the commit may have changed by the end
        self._tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "fault" not in report.keywords and not report.failed:  # the report of a dead worker has no keywords
            return
        test = self._tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        test["seconds"] = round(test["seconds"] + report.duration, 2)
        test.update(report.user_properties)
        if not report.passed:
            test.update(outcome=report.outcome, reason=_reason(report))

    def pytest_sessionfinish(self) -> None:
        tests = dict(sorted(self._tests.items()))
        faults = sorted({fault for test in tests.values() for fault in test.get("faults", ())}, key=_number)
        self._result["figures"] = {
            "faults": {fault: _summary([test for test in tests.values() if fault in test.get("faults", ())])
                       for fault in faults},
            "tests": tests,
        }  # fmt: skip
        result.write(self._result, self._path)


def _number(fault: str) -> tuple[bool, int]:
    return fault[0] == "R", int(fault[1:])


def _reason(report: pytest.TestReport) -> str:
    match report.longrepr:
        case (_, _, str(why)):  # skipped
            return why
        case longrepr if crash := getattr(longrepr, "reprcrash", None):
            return str(crash.message)
    return report.longreprtext


def _summary(tests: list[dict[str, Any]]) -> dict[str, Any]:
    """All tests of one fault together: how many had each outcome, their counts added up, the longest recovery."""
    summary: dict[str, Any] = dict(Counter(test["outcome"] for test in tests))
    measured = [test["measured"] for test in tests if "measured" in test]
    for keys, combine in ((_ADDED_UP, sum), (_WORST, max)):
        for key in keys:
            if values := [one[key] for one in measured if key in one]:
                summary[key] = combine(values)
    return summary
