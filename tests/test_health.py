"""The verdict of HEALTH, derived from what is wrong."""

from __future__ import annotations

import time

import pytest

from aggregator.server import health as health_module
from aggregator.server.health import Health

OK = {"storage": "ok", "commit": "ok"}


@pytest.mark.parametrize(
    ("health", "troubles", "verdict", "checks"),
    [
        (Health(), {}, "healthy", OK),
        (Health(), {"room": None}, "healthy", {**OK, "room": "ok"}),
        (Health(), {"room": "half full"}, "degraded", {**OK, "room": "half full"}),
        (Health(trouble="no space"), {"room": None}, "degraded", {**OK, "storage": "no space", "room": "ok"}),
        (Health(failure="EIO"), {}, "failed", {**OK, "storage": "EIO"}),
        (Health(trouble="no space", failure="EIO"), {}, "failed", {**OK, "storage": "EIO"}),
        (Health(failure="EIO"), {"room": "half full"}, "failed", {**OK, "storage": "EIO", "room": "half full"}),
    ],
)
def test_the_verdict(health: Health, troubles: dict[str, str | None], verdict: str, checks: dict[str, str]) -> None:
    assert health.verdict(troubles) == (verdict, checks)


def test_a_commit_that_takes_long_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limit_s = health_module.SLOW_COMMIT_S
    for age_s, slow in ((0.0, None), (limit_s, None), (limit_s + 1.25, f"a commit has been running for {6.2} s")):
        health = Health(commit_started=now - age_s)
        assert health.slow_commit == slow
        assert health.verdict({}) == ("degraded" if slow else "healthy", {**OK, "commit": slow or "ok"})


def test_without_a_commit_none_is_slow() -> None:
    assert Health(commit_started=None).slow_commit is None
