"""Every engine that the server can run on, opened for a test: what holds for one must hold for each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from aggregator.storage.engine import AnyEngine
from tests.harness.database_check import check_database
from tests.harness.dict_engine import DictEngine
from tests.harness.storage import open_store

ENGINES: Final = ("dict", "sqlite")


@contextlib.asynccontextmanager
async def opened(name: str, folder: Path) -> AsyncIterator[AnyEngine]:
    """An empty engine of this name; what it leaves in the folder must be sound."""
    path = folder / "events.db"
    engine: AnyEngine = await open_store(path) if name == "sqlite" else DictEngine()
    assert engine.name == name
    try:
        yield engine
    finally:
        await engine.close()
    if name == "sqlite":
        check_database(path)
