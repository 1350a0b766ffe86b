"""Opening a database: many servers at once, what is missing or wrong, and a password that stays where it is."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from aggregator import storage
from aggregator.config import Config
from aggregator.storage.engine import StorageUnusable
from aggregator.storage.postgres.store import Store
from tests.harness.server_process import StartServer
from tests.harness.wire import event, exchange


async def opened(url: str, lanes: int | None = None, standbys: int = 0) -> tuple[str, int]:
    """Open and close it; the name of the store, and its lanes."""
    store = await Store.open(url, lanes, standbys)
    numbers = {metric.name: metric.value for metric in store.gauges()}
    await store.close()
    return store.store_id, int(numbers["lanes"])  # type: ignore[arg-type]


async def test_many_servers_that_start_at_once_make_one_store(database: str) -> None:
    found = await asyncio.gather(*(opened(database, 3) for _ in range(8)))

    assert len(set(found)) == 1
    assert found[0][1] == 3


async def test_lanes_are_kept_added_and_never_taken_away(database: str) -> None:
    assert (await opened(database, 2))[1] == 2
    assert (await opened(database))[1] == 2
    assert (await opened(database, 5))[1] == 5
    assert (await opened(database, 1))[1] == 5


async def test_a_store_with_one_lane_keeps_it(database: str) -> None:
    assert (await opened(database))[1] == 1
    with pytest.raises(StorageUnusable, match="made with one lane"):
        await opened(database, 2)
    assert (await opened(database, 1))[1] == 1


async def test_another_version_of_the_schema_is_refused(database: str) -> None:
    await opened(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE aggregator.store SET version = 99")
    with pytest.raises(StorageUnusable, match="version 99"):
        await opened(database)


async def test_standbys_that_nobody_waits_for_are_missed(database: str) -> None:
    with pytest.raises(StorageUnusable, match="synchronous_standby_names='' with --standbys 1"):
        await opened(database, standbys=1)


async def test_without_psycopg_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StorageUnusable, match=r"pip install 'aggregator\[postgres\]'"):
        await storage.open(Config(db="postgresql://one/logs"))


def test_a_password_is_in_no_log(database: str, new_server: StartServer) -> None:
    parts = urlsplit(database)
    with_password = parts._replace(netloc=parts.netloc.replace("postgres@", "postgres:se-cret@")).geturl()
    assert "se-cret" in with_password
    server = new_server("--log-level", "debug", url=with_password).start()
    exchange(server.port, event("a"))
    assert "stored_total" in server.ask("STATS")
    assert server.stop() == 0
    nowhere = new_server(url=with_password.replace(parts.path, "/nowhere"))
    assert not nowhere.try_to_start()
    nonsense = new_server(url=f"{with_password}?nonsense=1")
    assert not nonsense.try_to_start()
    for one in (server, nowhere, nonsense):
        assert "se-cret" not in one.log
    assert f"{parts.hostname}:{parts.port}{parts.path}" in server.log
    assert 'database "nowhere" does not exist' in nowhere.log
    assert not Path(server.folder, "data").exists()
