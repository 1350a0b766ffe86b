"""The server says "ready" only after the store has proved itself, and never if it cannot do its work."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.disk import SmallDisk
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import event, exchange

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def filled(server: ServerProcess) -> ServerProcess:
    """A server that was stopped properly, with one event."""
    exchange(server.port, event("before"))
    assert server.stop() == 0
    return server


def assert_does_not_start(server: ServerProcess) -> None:
    seen = len(server.log)
    assert not server.try_to_start()
    assert server.wait() == 1
    (line,) = server.log[seen:].splitlines()
    assert line.startswith("aggregator: cannot use")


@pytest.mark.root
@needs_root
def test_a_database_that_nobody_may_write(filled: ServerProcess) -> None:
    """Restored with its immutable flag, in a writable folder."""
    done = subprocess.run(["chattr", "+i", filled.db], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(done.stderr)
    try:
        assert_does_not_start(filled)
    finally:
        subprocess.run(["chattr", "-i", filled.db], check=True)
    filled.start()
    assert filled.ask("STATS")["stored_total"] == 1


@pytest.mark.root
@needs_root
def test_a_database_that_is_mounted_read_only(filled: ServerProcess) -> None:
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    filled.prefix = ("unshare", "--mount", "sh", "-c", script, str(filled.db))
    assert_does_not_start(filled)
    filled.prefix = ()
    filled.start()
    assert filled.ask("STATS")["stored_total"] == 1


def test_another_programs_lock_is_waited_for(filled: ServerProcess) -> None:
    other = sqlite3.connect(filled.db, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    filled.start()
    health = filled.ask("HEALTH")
    assert (health["health"], health["checks"]["storage"]) == ("degraded", "another program is writing to the database")
    wait_until(lambda: "ERROR events are not being stored: another program is writing to the database" in filled.log)

    other.execute("ROLLBACK")
    other.close()
    wait_until(lambda: filled.ask("HEALTH")["health"] == "healthy")
    assert exchange(filled.port, event("after"))[0]["status"] == "stored"
    wait_until(lambda: "events are being stored again" in filled.log)


@pytest.mark.root
@needs_root
def test_space_is_waited_for(start_server: StartServer, tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "disk")
    if why := disk.make():
        pytest.skip(why)
    try:
        server = start_server(db=disk.folder / "events.db")
        assert server.stop() == 0
        left = os.statvfs(disk.folder)
        # There is room for the 32 KiB of SQLite's shared memory, but not for the first commit.
        (disk.folder / "rest").write_bytes(bytes(left.f_bavail * left.f_frsize - (36 << 10)))
        server.start()
        health = server.ask("HEALTH")
        assert health["health"] == "degraded"
        assert "no space" in health["checks"]["storage"]
        assert exchange(server.port, event("early"))[0]["code"] == "storage_full"

        (disk.folder / "rest").unlink()
        wait_until(lambda: server.ask("HEALTH")["health"] == "healthy")
        assert exchange(server.port, event("late"))[0]["status"] == "stored"
        assert server.stop() == 0
    finally:
        disk.remove()


# --- who may read the files


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def _modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}


def test_the_files_are_for_the_server_and_its_group(start_server: StartServer, open_folder: Path) -> None:
    server = start_server(db=open_folder / "data" / "events.db")
    exchange(server.port, event("e"))

    modes = _modes(server.db.parent)
    assert modes.pop("data") == 0o750
    assert modes == dict.fromkeys(("events.db", "events.db-wal", "events.db-shm", "events.db.lock"), 0o640)


@pytest.mark.root
@needs_root
def test_another_user_cannot_read_an_event(start_server: StartServer, open_folder: Path) -> None:
    """Not even in an existing folder that every user may enter."""
    (open_folder / "data").mkdir(mode=0o755)
    server = start_server(db=open_folder / "data" / "events.db")
    exchange(server.port, event("e"))

    names = [path for path in server.db.parent.iterdir() if path.suffix != ".lock"]
    assert len(names) == 3
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for path in names:
        done = subprocess.run([*nobody, "cat", path], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert "Permission denied" in done.stderr


def test_a_stricter_mask_stays(start_server: StartServer, open_folder: Path) -> None:
    server = start_server(
        db=open_folder / "data" / "events.db", prefix=("sh", "-c", 'umask 077; exec "$@"', sys.executable)
    )
    modes = _modes(server.db.parent)
    assert (modes["data"], modes["events.db"]) == (0o700, 0o600)
