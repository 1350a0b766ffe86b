"""Cut the power of a disk while a loaded server writes to it."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.harness.disk import Ext4Image
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess


def wait_until_it_stands_still(server: ServerProcess) -> None:
    """Wait until every thread has stopped. A sync that has begun ends first: a copy must not see half of a sync."""
    wait_until(lambda: _stands_still(Path(f"/proc/{server.pid}/task")))


def cut_power(server: ServerProcess, disk: Ext4Image, name: str) -> Ext4Image:
    """End a server together with its disk; return what is left on the disk. The power is cut at the moment of the copy.

    The server is stopped during the copy, and every ack that it sent before has been received.
    """
    server.signal(signal.SIGSTOP)
    wait_until_it_stands_still(server)
    left = disk.copy(name)
    server.kill()
    return left


def _stands_still(tasks: Path) -> bool:
    """Whether all threads of a process have stopped."""
    try:
        return all((task / "stat").read_text().rpartition(") ")[2][0] == "T" for task in tasks.iterdir())
    except (FileNotFoundError, ProcessLookupError):  # a thread has ended since the folder was read
        return False
