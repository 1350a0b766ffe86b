"""A store with a tiny ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aggregator.storage.sqlite.store import Store
from tests.harness import storage
from tests.harness.storage import OpenStore


@pytest.fixture
async def open_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenStore]:
    """Open the same store again and again. Every fifth key starts a flush, every second flush a merge."""
    storage.shrink_ledger(monkeypatch.setattr)
    storage.never_wait(monkeypatch.setattr)
    opened: list[Store] = []

    async def open_again() -> Store:
        if opened:
            await opened[-1].close()
        opened.append(await storage.open_store(tmp_path / "events.db"))
        return opened[-1]

    yield open_again
    await opened[-1].close()


@pytest.fixture
async def tiny(open_store: OpenStore) -> Store:
    return await open_store()
