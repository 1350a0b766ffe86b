"""No space left, and its relatives: a limit on the size of files, a file system that turns read-only."""

from __future__ import annotations

import shutil
import time

import pytest

from tests.checker import Ledger, check_database
from tests.conftest import StartServer
from tests.faults.disk import Ext4Image, SmallDisk
from tests.faults.record import RecordFigures
from tests.server_process import ServerProcess, wait_until
from tests.wire import Peer, exchange

PAYLOAD = f'{{"x":"{"x" * 1000}"}}'


def fill(server: ServerProcess, ledger: Ledger, most: int = 20_000) -> None:
    """Send one event after the other until one is refused."""
    with Peer(server.port) as peer:
        for number in range(most):
            name = f"fill-{number}"
            ledger.heard(name, peer.ask(ledger.line(name, PAYLOAD)))
            if ledger.errors:
                return
    raise AssertionError("none was refused")


@pytest.mark.root
def test_a_full_disk_is_said_and_acks_resume_by_themselves(
    start_server: StartServer, small_disk: SmallDisk, record_figures: RecordFigures
) -> None:
    """T9: nothing but ``storage_full`` while it is full, alive, acks within 2 s of space returning, no restart."""
    server = start_server(db=small_disk.folder / "events.db")
    ledger = Ledger()
    fill(server, ledger)
    health = server.ask("HEALTH")
    assert health["health"] == "degraded"
    assert "no space" in health["checks"]["storage"]
    with Peer(server.port) as peer:
        for number in range(50):  # it stays alive and says so to everybody
            name = f"more-{number}"
            ledger.heard(name, peer.ask(ledger.line(name, PAYLOAD)))
        assert set(ledger.errors.values()) == {"storage_full"}

        small_disk.remount("size=64m")
        enlarged = time.monotonic()
        wait_until(lambda: server.ask("HEALTH")["health"] == "healthy", 2)
        name = "after"
        ledger.heard(name, peer.ask(ledger.line(name)))
        recovered_s = time.monotonic() - enlarged
    assert name in ledger.acked
    assert recovered_s < 2
    verdict = ledger.verify(server)
    assert "events are not being stored: no space left" in server.log
    assert "events are being stored again" in server.log
    assert server.stop() == 0
    check_database(server.db)
    record_figures("full disk", **verdict.figures, recovery_s=recovered_s)


@pytest.mark.root
def test_a_disk_that_is_full_at_the_start_is_said(new_server: StartServer, small_disk: SmallDisk) -> None:
    """T9: no database can be made there: exit code 1 and one line. With space it starts, nothing left in its way."""
    filler = small_disk.folder / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(8 << 20))
    server = new_server(db=small_disk.folder / "events.db")
    assert not server.try_to_start()
    assert server.wait() == 1
    assert server.log.count("\n") == 1
    assert "events.db" in server.log
    filler.unlink()
    server.start()
    ledger = Ledger()
    assert exchange(server.port, ledger.line("e"))[0]["status"] == "stored"
    ledger.verify(server)


@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit (Debian package util-linux)")
def test_a_limit_on_the_size_of_files_ends_all_acks(new_server: StartServer, record_figures: RecordFigures) -> None:
    """T9: RLIMIT_FSIZE. The figure asked for a server that goes on when there is space again.

    But the limit is one of the process, and SQLite reports it as any write that failed (SQLITE_IOERR_WRITE), as it
    would a broken disk. So it is a failure: no more acks, exit code 1, LOST = 0 after a start without the limit.
    """
    server = new_server(prefix=("prlimit", f"--fsize={2 << 20}")).start()
    ledger = Ledger()
    fill(server, ledger)
    assert set(ledger.errors.values()) == {"storage"}
    assert server.wait() == 1
    assert "the store has failed: disk I/O error" in server.log
    server.prefix = ()
    server.start()
    verdict = ledger.verify(server)
    assert server.stop() == 0
    check_database(server.db)
    record_figures("RLIMIT_FSIZE", **verdict.figures)


@pytest.mark.root
def test_a_file_system_that_turns_read_only_ends_all_acks(
    start_server: StartServer, ext4_image: Ext4Image, record_figures: RecordFigures
) -> None:
    """T9: as ext4 does when it finds itself damaged (``errors=remount-ro``). Files that are open for writing keep an
    administrator from doing that by hand.

    The figure asked for acks without a restart. But such a file system has to be unmounted before it can be written
    again, and no server can run meanwhile: exit code 1, and LOST = 0 when both are back.
    """
    server = start_server(db=ext4_image.folder / "events.db")
    ledger = Ledger()
    with Peer(server.port) as peer:
        for number in range(200):
            name = f"e-{number}"
            if number == 100:
                ext4_image.remount("abort")
            ledger.heard(name, peer.ask(ledger.line(name, PAYLOAD)))
            if ledger.errors:
                break
    assert set(ledger.errors.values()) == {"storage"}
    assert server.wait() == 1
    assert "the store has failed: " in server.log
    assert "Traceback" not in server.log

    again = ext4_image.copy("again")  # as it is on the disk; the one that is mounted may be busy elsewhere for a while
    try:
        error = again.mount()
        assert error is None, error
        successor = start_server(db=again.folder / "events.db")
        verdict = ledger.verify(successor)
        assert successor.stop() == 0
        check_database(successor.db)
    finally:
        again.remove()
    record_figures("file system turned read-only", **verdict.figures)
