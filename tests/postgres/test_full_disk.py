"""The primary's disk is full: events are refused, nothing acked is lost, and acks resume."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.account import Account
from tests.harness.disk import SmallDisk
from tests.harness.polling import wait_until
from tests.harness.postgres import ROOT_USER, Cluster, StartCluster
from tests.harness.record import RecordFigures
from tests.harness.server_process import StartServer
from tests.harness.wire import Peer

PAYLOAD = f'{{"n":"NAME","x":"{"x" * 50}"}}'

pytestmark = pytest.mark.root


@pytest.fixture
def cluster(start_cluster: StartCluster) -> Cluster:
    """A primary alone."""
    return start_cluster()


@pytest.fixture
def small_disk(cluster: Cluster) -> Iterator[SmallDisk]:
    """A disk of 16 MB that PostgreSQL may write to."""
    disk = SmallDisk(cluster.folder / "small")
    reason = disk.make("16m")
    try:
        if reason:
            pytest.skip(f"cannot make a small disk here: {reason}")
        yield disk
    finally:
        disk.remove()


def test_a_table_that_cannot_grow_is_a_full_storage(
    cluster: Cluster, small_disk: SmallDisk, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """The tables are on a disk of their own, without WAL: PostgreSQL reports it full, and so do we. Acks resume."""
    space = small_disk.folder / "space"
    space.mkdir()
    shutil.chown(space, ROOT_USER, ROOT_USER)
    cluster.primary.ask(f"CREATE TABLESPACE small LOCATION '{space}'")
    cluster.primary.ask("CREATE DATABASE logs TABLESPACE small")
    server = start_server("--lanes", "1", "--standbys", "0", url=cluster.url("logs"))
    account = Account()
    number = 0
    with Peer(server.port) as peer:
        while not account.errors:
            assert number < 500_000, "it was never full"
            names = [f"e{number + one}" for one in range(500)]
            number += 500
            peer.send(account.lines(names, PAYLOAD))
            for name in names:
                account.heard(name, peer.reply())
        assert set(account.errors.values()) == {"storage_full"}
        assert server.ask("HEALTH")["health"] == "degraded"
        small_disk.remount("size=256m")
        wait_until(lambda: server.ask("HEALTH")["health"] == "healthy")
        account.heard("after", peer.ask(account.line("after")))
    assert "after" in account.acked
    verdict = account.verify(server)
    assert server.stop() == 0
    record_figures("full disk of tables", **verdict.figures)


def test_no_room_for_wal_stops_the_primary_and_loses_nothing(
    cluster: Cluster, small_disk: SmallDisk, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """PostgreSQL panics. The server keeps what it cannot store, and goes on once the primary is back and has room."""
    primary = cluster.primary
    small_disk.remount("size=80m")
    name = cluster.new_database()
    server = start_server(
        "--lanes", "1", "--standbys", "0", "--reply-buffer-bytes", str(64 << 20), url=cluster.url(name)
    )  # so that it is not muted while nothing is read
    primary.stop()
    move_wal(primary.data, small_disk.folder)
    primary.start()
    account = Account()
    account.send(server.port, "before", 100)
    fill = small_disk.folder / "fill"
    with fill.open("wb") as file:
        file.write(b"\0" * (shutil.disk_usage(small_disk.folder).free - (1 << 16)))
    with Peer(server.port) as peer:
        sent: list[str] = []
        for number in range(400):  # more than a WAL segment has room for
            names = [f"e{number}-{one}" for one in range(200)]
            sent += names
            peer.send(account.lines(names, PAYLOAD))
            if "PANIC" in primary.log:
                break
        wait_until(lambda: "PANIC" in primary.log)
        fill.unlink()
        primary.end()
        primary.start()
        for name in sent:
            account.heard(name, peer.reply())
    verdict = account.verify(server)
    assert server.stop() == 0
    record_figures("no room for WAL", **verdict.figures)


def move_wal(data: Path, disk: Path) -> None:
    """Move WAL to another disk."""
    wal = disk / "pg_wal"
    shutil.move(str(data / "pg_wal"), str(wal))
    for path in (wal, *wal.rglob("*")):
        shutil.chown(path, ROOT_USER, ROOT_USER)
    (data / "pg_wal").symlink_to(wal)
