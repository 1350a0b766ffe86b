"""Events on disk. ``open`` is the only place that knows which engines there are."""

from __future__ import annotations

from aggregator.config import Config
from aggregator.storage.engine import AnyEngine, StorageUnusable


async def open(config: Config) -> AnyEngine:
    """Open the store that ``config`` names, or make it. Raises StorageUnusable."""
    if not isinstance(config.db, str):
        from aggregator.storage.sqlite.store import Store as SQLite

        return await SQLite.open(config.db, config.wal_limit_bytes)
    try:
        import psycopg  # noqa: F401  it may be installed but find no libpq
    except ImportError as error:
        why = "a PostgreSQL database needs psycopg and libpq: pip install 'aggregator[postgres]'"
        raise StorageUnusable(why) from error
    from aggregator.storage.postgres.store import Store as PostgreSQL

    return await PostgreSQL.open(config.db, config.lanes, config.standbys)
