"""What the server reports to a service manager: ready, status, stopping, and that it is alive."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregator.server.health import Health
from aggregator.server.supervisor import Supervisor
from tests.harness import changes
from tests.harness.activation import NotifySocket
from tests.harness.disk import SmallDisk
from tests.harness.polling import until, wait_until
from tests.harness.server_process import StartServer
from tests.harness.wire import Peer, event, exchange


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NotifySocket]:
    """A manager that receives the reports of the servers of this test."""
    made = NotifySocket(tmp_path, abstract=request.param == "abstract")
    monkeypatch.setenv("NOTIFY_SOCKET", made.variable)
    yield made
    made.close()


def test_it_is_told_when_the_server_is_ready_and_when_it_stops(manager: NotifySocket, new_server: StartServer) -> None:
    server = new_server()
    assert manager.rest() == []
    server.start()
    manager.wait_for("READY=1")
    assert manager.told == ["READY=1", "STATUS=storing events"]
    assert exchange(server.port, event("e"))[0]["status"] == "stored"
    assert server.stop() == 0
    assert manager.rest() == ["STOPPING=1", "STATUS=storing what was read before the end"]


def test_the_watchdog_is_fed_until_the_event_loop_stands_still(
    manager: NotifySocket, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    server = start_server(changes=[changes.pinging_hangs])
    for _ in range(3):
        manager.wait_for("WATCHDOG=1")
    with Peer(server.port) as peer:
        peer.send(b"PING\n")
        wait_until(lambda: "PING hangs" in server.log)
        manager.rest()
        time.sleep(1)  # several times as long as its pauses
        assert manager.rest() == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_full_disk_is_said_and_does_not_starve_the_watchdog(
    manager: NotifySocket, start_server: StartServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = SmallDisk(tmp_path / "disk")
    if why := disk.make():
        pytest.skip(why)
    try:
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        server = start_server(db=disk.folder / "events.db")
        large = f'{{"x":"{"x" * 100_000}"}}'
        for n in range(100):
            (reply,) = exchange(server.port, event(f"e-{n}", payload=large))
            if reply["status"] != "stored":
                break
        assert reply["code"] == "storage_full"
        manager.wait_for(f"STATUS=not storing: {reply['detail']}")
        manager.wait_for("WATCHDOG=1")
        disk.remount("size=64m")
        manager.wait_for("STATUS=storing events")
        assert server.stop() == 0
    finally:
        disk.remove()


async def test_the_watchdog_starves_while_a_commit_is_stuck_or_the_store_has_failed(
    manager: NotifySocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    health = Health()
    Supervisor(health, os.environ).ready()
    told: list[str] = []

    def hears(line: str) -> bool:
        told.extend(manager.rest())
        return line in told

    await until(lambda: hears("WATCHDOG=1"))
    health.commit_started = 0.0  # long ago
    await until(lambda: any(line.startswith("STATUS=not storing: a commit has been") for line in manager.rest()))
    assert "WATCHDOG=1" not in manager.rest()
    health.trouble = "another program is writing to the database"  # which a restart would not mend
    told.clear()
    await until(lambda: hears("WATCHDOG=1"))
    health.commit_started = health.trouble = None
    told.clear()
    await until(lambda: hears("WATCHDOG=1"))
    health.failure = "the disk\nis broken"
    await until(lambda: hears("STATUS=not storing: failed: the disk is broken"))
    assert "WATCHDOG=1" not in manager.rest()


@pytest.mark.parametrize("address", ["nowhere", "/no/such/socket", "@no such socket"])
def test_a_manager_that_cannot_be_told_is_no_harm(
    address: str, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    server = start_server()
    assert exchange(server.port, event("e"))[0]["status"] == "stored"
    assert server.stop() == 0
    assert ("NOTIFY_SOCKET=nowhere is ignored" in server.log) == (address == "nowhere")


@pytest.mark.parametrize(
    ("microseconds", "pid"), [("0", ""), ("", ""), ("soon", ""), ("300000", "1")], ids=["zero", "none", "text", "pid"]
)
async def test_without_a_watchdog_none_is_fed(
    manager: NotifySocket, monkeypatch: pytest.MonkeyPatch, microseconds: str, pid: str
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    Supervisor(Health(), os.environ).ready()
    assert manager.rest() == ["READY=1", "STATUS=storing events"]
