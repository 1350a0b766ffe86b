"""Whether events are being stored, and if not, why: what ``HEALTH`` says."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SLOW_COMMIT_S: Final = 5.0
"""A commit that takes longer makes HEALTH degraded. The worst batch measured took a tenth of a second."""

OK: Final = "ok"


@dataclass(slots=True)
class Health:
    """What is wrong at this moment. The consumer writes it; the server's start may set ``trouble`` once."""

    trouble: str | None = None
    """Why nothing is being stored at the moment."""
    failure: str | None = None
    """Why nothing will be stored any more."""
    commit_started: float | None = None
    """``time.monotonic()`` of the oldest commit that is running."""

    @property
    def slow_commit(self) -> str | None:
        """What is wrong if a commit has been running for too long; None: nothing."""
        age_s = time.monotonic() - self.commit_started if self.commit_started is not None else 0.0
        return f"a commit has been running for {age_s:.1f} s" if age_s > SLOW_COMMIT_S else None

    def verdict(self, troubles: Mapping[str, str | None]) -> tuple[str, dict[str, str]]:
        """``healthy``, ``degraded`` or ``failed``, and each check: OK, or what is wrong. The engine adds its own."""
        wrong = {"storage": self.failure or self.trouble, "commit": self.slow_commit, **troubles}
        health = "failed" if self.failure else "degraded" if any(wrong.values()) else "healthy"
        return health, {name: why or OK for name, why in wrong.items()}
