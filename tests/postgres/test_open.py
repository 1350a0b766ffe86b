"""Opening a database: many servers at once, missing or wrong requirements, and a password that is never disclosed."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from aggregator import storage
from aggregator.config import Config
from aggregator.event import Event, Events
from aggregator.storage.engine import StorageFailed, StorageUnusable
from aggregator.storage.postgres.link import CLOSE_S
from aggregator.storage.postgres.store import Store
from tests.harness.background import in_background
from tests.harness.command_line import aggregator, assert_one_line
from tests.harness.polling import DEADLINE_S, until
from tests.harness.postgres import Cluster, StartCluster
from tests.harness.server_process import StartServer
from tests.harness.tcp_proxy import TcpProxy
from tests.harness.wire import event, exchange


async def opened(url: str, lanes: int | None = None, standbys: int = 0) -> tuple[str, int]:
    """Open the store and close it again; return its name and its number of lanes."""
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
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StorageUnusable, match=r"pip install 'aggregator\[postgres\]'"):
        await storage.open(Config(db="postgresql://one/logs"))


def test_without_libpq_it_is_said_what_to_install(tmp_path: Path) -> None:
    done = aggregator(
        "--port",
        "0",
        "--db",
        "postgresql://one/logs",
        cwd=tmp_path,
        environment={**os.environ, "PSYCOPG_IMPL": "missing"},
    )
    assert_one_line(done, 1, "a PostgreSQL database needs psycopg and libpq: pip install 'aggregator[postgres]'")


def test_a_server_that_waits_for_its_database_ends_when_it_is_told_to(new_server: StartServer) -> None:
    """The listener at the database's address accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        server = new_server(url=f"postgresql://ada@127.0.0.1:{port}/logs?connect_timeout=600")
        with in_background(server.try_to_start), silent.accept()[0]:
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
    assert "stopped while opening the store" in server.log
    assert "Traceback" not in server.log


def test_a_server_ends_well_although_its_database_does_not_answer(
    start_cluster: StartCluster, start_server: StartServer
) -> None:
    """Nothing is queued, so nothing is lost; the server gives up all other queries to the database."""
    cluster = start_cluster()
    server = start_server("--standbys", "0", "--drain-timeout", "1", url=cluster.url(cluster.new_database()))
    exchange(server.port, event("a"))
    cluster.primary.freeze()
    assert server.stop() == 0
    assert "stopped: " in server.log
    assert "stopped: some" not in server.log
    cluster.primary.thaw()


async def test_closing_waits_for_no_hint(database: str) -> None:
    async def closed_s() -> float:
        store = await Store.open(database, None, 0)
        await until(lambda: store._news._link._connection)
        started = time.monotonic()
        await store.close()
        return time.monotonic() - started

    assert min([await closed_s() for _ in range(5)]) < CLOSE_S


async def test_tables_that_are_gone_end_the_server(database: str) -> None:
    store = await Store.open(database, None, 0)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ALTER TABLE aggregator.topics RENAME TO gone")
    batch = store.new_batch()
    batch.add(Events.of([Event.of("t", "a", b"{}")]))
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(StorageFailed, match="42P01"):
            await store.append(batch)
    await store.close()


async def test_an_unreachable_database_is_shown_for_as_long_as_it_is(shared_cluster: Cluster) -> None:
    primary, name = shared_cluster.primary, shared_cluster.new_database()
    with TcpProxy(primary.port) as proxy:
        store = await Store.open(primary.url(name).replace(str(primary.port), str(proxy.port)), None, 0)
        await store.verify()
        assert store.troubles()["database"] is None
    for _ in range(3):
        await store.verify()
        assert store.troubles()["database"]
    await store.close()


async def test_a_connection_that_found_no_descriptor_is_not_used(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks of a new connection are made on the next one."""
    store = await Store.open(database, None, 0)
    await until(lambda: store._news._link._connection)  # it connects by itself
    await store._query.renew(background=False)
    calls = 0

    def dup(descriptor: int, /) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(descriptor)

    real = os.dup
    monkeypatch.setattr(os, "dup", dup)
    generation = store._topics.generation
    await store.look()
    assert calls == 2
    assert store._topics.generation == generation + 1
    await store.close()


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
