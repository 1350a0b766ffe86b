"""SIGHUP: the contents of files are read again, or everything stays as it was."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aggregator.config import Config
from aggregator.server.port import ACKED, FORWARD, TLS, Port
from aggregator.server.reload import CannotLoad, LogLevel, keep_loading, load
from aggregator.server.server import Files
from aggregator.server.stats import Stats
from tests.harness import changes
from tests.harness.background import in_background
from tests.harness.command_line import aggregator, assert_one_line
from tests.harness.polling import until, wait_until
from tests.harness.server_process import StartServer
from tests.harness.wire import Peer, event


class File:
    """Something that can be loaded, unless it is broken."""

    def __init__(self) -> None:
        self.found = 0
        self.used = 0
        self.broken: Exception | None = None

    def load(self) -> Callable[[], None]:
        if self.broken:
            raise self.broken
        found = self.found

        def swap() -> None:
            self.used = found

        return swap


async def test_all_is_replaced_or_nothing() -> None:
    first, second = File(), File()
    first.found = second.found = 1
    second.broken = CannotLoad("broken")
    with pytest.raises(CannotLoad, match="broken"):
        await load([first, second])
    assert (first.used, second.used) == (0, 0)
    second.broken = None
    await load([first, second])
    assert (first.used, second.used) == (1, 1)


@pytest.mark.parametrize("error", [CannotLoad("x is broken"), ZeroDivisionError()])
async def test_a_failure_is_shown_until_the_next_try(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    file, asked, stats = File(), asyncio.Event(), Stats()
    task = asyncio.create_task(keep_loading([file], asked, stats))
    file.broken = error
    asked.set()
    await until(lambda: not stats.config_reload_ok)
    assert "not reloaded, everything stays as it was" in caplog.text
    file.broken, file.found = None, 2
    asked.set()
    await until(lambda: stats.config_reload_ok)
    assert file.used == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("content", "why"), [(b"loud", "expected debug, info, warning or error, got 'loud'"), (b"\xff", "cannot read")]
)
def test_a_file_without_a_log_level(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "level"
    path.write_bytes(content)
    with pytest.raises(CannotLoad, match=why):
        LogLevel(path).load()


def test_the_level_is_not_changed_before_it_is_swapped(tmp_path: Path) -> None:
    log = logging.getLogger("aggregator")
    before = log.level
    path = tmp_path / "level"
    path.write_text("Error\n")
    try:
        swap = LogLevel(path).load()
        assert log.level == before
        swap()
        assert log.level == logging.ERROR
    finally:
        log.setLevel(before)


def test_the_log_level_is_read_again_and_nobody_is_dropped(start_server: StartServer, tmp_path: Path) -> None:
    level = tmp_path / "level"
    level.write_text("info\n")
    server = start_server("--log-level", "error", "--log-level-file", str(level), prefix=("setsid",))
    with Peer(server.port) as peer:
        assert peer.ask(event("before"))["status"] == "stored"
        assert "DEBUG" not in server.log
        level.write_text("debug\n")
        server.signal(signal.SIGHUP)
        wait_until(lambda: "reloaded" in server.log)
        Peer(server.port).close()
        wait_until(lambda: "DEBUG" in server.log)

        level.unlink()
        server.signal(signal.SIGHUP)
        wait_until(lambda: f"cannot read {level} (--log-level-file): No such file or directory" in server.log)
        assert server.ask("STATS")["config_reload_ok"] == 0
        assert peer.ask(event("after"))["status"] == "stored"
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("option", "port"),
    [("tls_cert", TLS), ("identities", ACKED), ("log_level_file", ACKED), ("forward_shared_key_file", FORWARD)],
)
async def test_a_fifo_without_a_writer_holds_nothing_up(option: str, port: Port, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    options: dict[str, Any] = {option: fifo}
    with pytest.raises(CannotLoad) as caught:
        await load(Files(Config(**options), [port]).all)
    assert str(caught.value) == f"cannot read {fifo} (--{option.replace('_', '-')}): not a regular file"


def test_a_server_that_waits_for_a_disk_ends_when_it_is_told_to(new_server: StartServer, tmp_path: Path) -> None:
    level, reached = tmp_path / "level", tmp_path / "reached"
    level.write_text("info")
    server = new_server("--log-level-file", str(level), changes=[changes.hung_disk])
    with in_background(server.try_to_start):
        wait_until(reached.exists)
        server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "stopped while reading files" in server.log


def test_a_missing_file_at_the_start_is_one_clear_line(tmp_path: Path) -> None:
    done = aggregator("--port", "0", "--log-level-file", "nope", cwd=tmp_path)
    assert_one_line(done, 1, "cannot read nope (--log-level-file): No such file or directory")
