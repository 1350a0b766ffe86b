"""The promise on disk. ``open`` is the only place that knows which engines there are."""

from __future__ import annotations

from aggregator.config import Config
from aggregator.storage.engine import AnyEngine
from aggregator.storage.sqlite.store import Store


async def open(config: Config) -> AnyEngine:
    """Open the store that ``config`` names, or make it. Raises StorageUnusable."""
    return await Store.open(config.db, config.wal_limit_bytes)
