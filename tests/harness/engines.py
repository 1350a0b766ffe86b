"""Every engine that the server can run on, opened for a test. What holds for one engine must hold for each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from aggregator.storage.engine import AnyEngine
from tests.harness.database_check import check_database
from tests.harness.dict_engine import DictEngine
from tests.harness.storage import open_store

ENGINES: Final = ("dict", "sqlite")
"""The engines that need nothing but a folder."""

LANES: Final = {"postgresql": 1, "postgresql in lanes": 4}
"""The number of lanes of each engine that needs a database."""

ALL: Final = (*ENGINES, *(pytest.param(name, marks=pytest.mark.postgres) for name in LANES))


@contextlib.asynccontextmanager
async def opened(name: str, folder: Path) -> AsyncIterator[AnyEngine]:
    """An empty engine of this name. The file that it leaves in the folder must be sound."""
    path = folder / "events.db"
    engine: AnyEngine = await open_store(path) if name == "sqlite" else DictEngine()
    assert engine.name == name
    try:
        yield engine
    finally:
        await engine.close()
    if name == "sqlite":
        check_database(path)


@contextlib.asynccontextmanager
async def opened_postgres(name: str, url: str) -> AsyncIterator[AnyEngine]:
    """An engine of this name, on a database of PostgreSQL."""
    from aggregator.storage.postgres.store import Store  # psycopg may be missing

    engine = await Store.open(url, LANES[name], 0)
    try:
        yield engine
    finally:
        await engine.close()
