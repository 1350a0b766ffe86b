"""No space is left, the size of files is limited, or the file system becomes read-only."""

from __future__ import annotations

import shutil
import time

import pytest

from tests.harness.account import Account
from tests.harness.disk import Ext4Image, SmallDisk
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import SLACK
from tests.harness.wire import Peer, exchange

PAYLOAD = f'{{"x":"{"x" * 1000}"}}'


def fill(server: ServerProcess, account: Account, most: int = 20_000) -> None:
    """Send events one by one until one is refused."""
    with Peer(server.port) as peer:
        for number in range(most):
            name = f"fill-{number}"
            account.heard(name, peer.ask(account.line(name, PAYLOAD)))
            if account.errors:
                return
    raise AssertionError("none was refused")


@pytest.mark.root
def test_a_full_disk_is_said_and_acks_resume_by_themselves(
    start_server: StartServer, small_disk: SmallDisk, record_figures: RecordFigures
) -> None:
    """T9: while the disk is full, only ``storage_full``; within 2 s of space being freed, acks, without a restart."""
    server = start_server(db=small_disk.folder / "events.db")
    account = Account()
    fill(server, account)
    health = server.ask("HEALTH")
    assert health["health"] == "degraded"
    assert "no space" in health["checks"]["storage"]
    with Peer(server.port) as peer:
        for number in range(50):  # the server stays alive and answers every client so
            name = f"more-{number}"
            account.heard(name, peer.ask(account.line(name, PAYLOAD)))
        assert set(account.errors.values()) == {"storage_full"}

        small_disk.remount("size=64m")
        enlarged = time.monotonic()
        wait_until(lambda: server.ask("HEALTH")["health"] == "healthy")
        name = "after"
        account.heard(name, peer.ask(account.line(name)))
        recovered_s = time.monotonic() - enlarged
    assert name in account.acked
    assert recovered_s < SLACK * 2
    verdict = account.verify_and_stop(server)
    assert "events are not being stored: no space left" in server.log
    assert "events are being stored again" in server.log
    record_figures("full disk", **verdict.figures, recovery_s=recovered_s)


@pytest.mark.root
def test_a_disk_that_is_full_at_the_start_is_said(new_server: StartServer, small_disk: SmallDisk) -> None:
    """T9: no database can be made: exit code 1 and one line. Once there is space, the server starts."""
    filler = small_disk.folder / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(8 << 20))
    server = new_server(db=small_disk.folder / "events.db")
    assert not server.try_to_start()
    assert server.wait() == 1
    assert server.log.count("\n") == 1
    assert "events.db" in server.log
    assert "No space left on device" in server.log
    filler.unlink()
    server.start()
    account = Account()
    assert exchange(server.port, account.line("e"))[0]["status"] == "stored"
    account.verify(server)


@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit (Debian package util-linux)")
def test_a_limit_on_the_size_of_files_ends_all_acks(new_server: StartServer, record_figures: RecordFigures) -> None:
    """T9: RLIMIT_FSIZE ends the server, because SQLite reports it like a broken disk (SQLITE_IOERR_WRITE).

    No more acks, exit code 1, LOST = 0 after a start without the limit.
    """
    server = new_server(prefix=("prlimit", f"--fsize={2 << 20}")).start()
    account = Account()
    fill(server, account)
    assert set(account.errors.values()) == {"storage"}
    assert server.wait() == 1
    assert "the store has failed: disk I/O error" in server.log
    server.prefix = ()
    server.start()
    verdict = account.verify_and_stop(server)
    record_figures("RLIMIT_FSIZE", **verdict.figures)


@pytest.mark.root
def test_a_file_system_that_turns_read_only_ends_all_acks(
    start_server: StartServer, ext4_image: Ext4Image, record_figures: RecordFigures
) -> None:
    """T9: this happens when ext4 finds itself damaged (``errors=remount-ro``).

    Such a file system has to be unmounted before it can be written to again, and until then no server can run on it:
    exit code 1, and LOST = 0 when both are back. It cannot be remounted by hand while files are open for writing.
    """
    server = start_server(db=ext4_image.folder / "events.db")
    account = Account()
    with Peer(server.port) as peer:
        for number in range(200):
            name = f"e-{number}"
            if number == 100:
                ext4_image.remount("abort")
            account.heard(name, peer.ask(account.line(name, PAYLOAD)))
            if account.errors:
                break
    assert set(account.errors.values()) == {"storage"}
    assert server.wait() == 1
    assert "the store has failed: " in server.log
    assert "Traceback" not in server.log

    again = ext4_image.copy("again")  # as it is on the disk; the mounted file system may be busy for a while
    try:
        error = again.mount()
        assert error is None, error
        successor = start_server(db=again.folder / "events.db")
        verdict = account.verify_and_stop(successor)
    finally:
        again.remove()
    record_figures("file system turned read-only", **verdict.figures)
