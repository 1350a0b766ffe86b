"""Unix sockets: who may connect, how clients are identified, and who owns the socket files."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from aggregator.cli.parser import Parser
from aggregator.cli.target import add_target
from tests.harness import wire
from tests.harness.command_line import aggregator, assert_one_line
from tests.harness.polling import wait_until
from tests.harness.private_network import needs_root
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Json, Peer, event, events


class UnixPeer(Peer):
    """A Peer over a unix socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(wire.TIMEOUT_S)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self._replies = self.socket.makefile("rb")


def exchange(path: Path, data: bytes) -> list[Json]:
    with UnixPeer(path) as peer:
        peer.send(data)
        peer.half_close()
        return peer.rest()


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "acked.sock", tmp_path / "silent.sock"


@pytest.fixture
def options(paths: tuple[Path, Path]) -> tuple[str, ...]:
    return ("--socket", str(paths[0]), "--silent-socket", str(paths[1]))


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_both_take_events_and_only_one_answers(
    start_server: StartServer, paths: tuple[Path, Path], options: tuple[str, ...], loop: str
) -> None:
    acked, silent = paths
    server = start_server(*options, loop=loop)
    assert f"socket {acked}, silent socket {silent}, 0 events" in server.log
    assert [reply["status"] for reply in exchange(acked, b"".join(events("acked", 5000)))] == ["stored"] * 5000
    with UnixPeer(silent) as writer:
        writer.send(b"".join(events("silent", 5000)))
    wait_until(lambda: server.ask("STATS")["stored_total"] == 10_000)
    assert exchange(silent, b"PING\n") == []
    wait_until(lambda: f"silent socket: rejected line 1 of uid {os.getuid()}: not_allowed" in server.log)
    with UnixPeer(silent) as late:
        late.send(event("early"))
        wait_until(lambda: server.ask("STATS")["stored_total"] == 10_001)
        server.signal(signal.SIGTERM)
        assert late.raw_rest() == b""
        late.send(event("late"))
    assert server.wait() == 0
    assert not acked.exists()
    assert not silent.exists()
    server.restart()
    assert exchange(acked, b"EVENT t late\n")[0]["event"]


def test_who_may_connect_is_who_may_write_to_the_file(
    start_server: StartServer, paths: tuple[Path, Path], options: tuple[str, ...]
) -> None:
    start_server(*options)
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o660, 0o660]


@pytest.mark.root
@needs_root
@pytest.mark.skipif(not shutil.which("setpriv") or not shutil.which("nc"), reason="needs setpriv and nc")
def test_another_user_is_kept_out_or_counted_by_its_uid(start_server: StartServer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "s"
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "nc", "-U", str(path)]
        server = start_server("--socket", str(path))
        assert b"Permission denied" in subprocess.run(as_nobody, capture_output=True, timeout=30).stderr
        server.stop()
        start_server("--socket", str(path), "--socket-mode", "0666", "--address-connections", "1")
        with UnixPeer(path) as mine:
            assert mine.ask(b"PING\n")["pong"]
            with UnixPeer(path) as second:
                assert second.reply()["detail"] == "1 connections from uid 0 are open; try again later"
            with subprocess.Popen(as_nobody, stdin=subprocess.PIPE) as nobody:
                wait_until(lambda: mine.ask(b"STATS\n")["connections"] == 2)
                nobody.kill()


# --- socket files that are already there


def test_the_file_of_a_killed_server_is_replaced(
    start_server: StartServer, paths: tuple[Path, Path], options: tuple[str, ...]
) -> None:
    server = start_server(*options)
    server.kill()
    assert paths[0].is_socket()
    server.restart()
    assert exchange(paths[0], b"PING\n")[0]["pong"]


def test_the_socket_of_a_running_server_is_left_alone(
    start_server: StartServer, new_server: StartServer, paths: tuple[Path, Path], options: tuple[str, ...]
) -> None:
    start_server(*options)
    other = new_server(*options)
    assert not other.try_to_start()
    assert other.log == f"aggregator: cannot listen on {paths[0]} (--socket): Address already in use\n"
    assert exchange(paths[0], b"PING\n")[0]["pong"]
    assert not other.db.exists()


def test_what_is_no_socket_is_left_alone(new_server: StartServer, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    server = new_server("--socket", str(file))
    assert not server.try_to_start()
    assert server.log == f"aggregator: cannot listen on {file} (--socket): File exists\n"
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("path", "why"), [("no/such/folder", "No such file or directory"), ("x" * 200, "AF_UNIX path too long")]
)
def test_a_path_that_cannot_be_is_one_clear_line(path: str, why: str, tmp_path: Path) -> None:
    done = aggregator("--port", "0", "--silent-port", "off", "--socket", path, cwd=tmp_path)
    assert_one_line(done, 1, f"cannot listen on {path} (--socket): {why}")
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        done = aggregator("--port", "0", "--socket", "s", "--silent-socket", "s", cwd=tmp_path)
        assert_one_line(done, 1, "cannot listen on s (--silent-socket): Address already in use")
        assert list(tmp_path.iterdir()) == []
        done = aggregator("--port", number, "--socket", "s", cwd=tmp_path)
    assert_one_line(done, 1, "Address already in use")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "events.db").mkdir()
    done = aggregator("--port", "0", "--silent-port", "off", "--socket", "s", "--db", "events.db", cwd=tmp_path)
    assert done.returncode == 1
    assert not (tmp_path / "s").exists()


# --- clients


def test_every_command_at_a_unix_socket(
    start_server: StartServer, paths: tuple[Path, Path], options: tuple[str, ...], tmp_path: Path
) -> None:
    start_server(*options)
    log = tmp_path / "app.log"
    log.write_text("".join(f"line {i}\n" for i in range(1000)))
    to = ("--to", "unix:acked.sock")
    assert aggregator("send", "--topic", "t", *to, str(log), cwd=tmp_path).returncode == 0
    assert aggregator("export", *to, "--quiet", "t", cwd=tmp_path).stdout.count("\n") == 1000
    assert aggregator("tail", "-n", "2", *to, "t", cwd=tmp_path).stdout.count("\n") == 2
    assert "pong" in aggregator("admin", *to, "PING", cwd=tmp_path).stdout
    done = aggregator("admin", "--to", "unix:nope", "PING", cwd=tmp_path)
    assert_one_line(done, 1, f"unix:{tmp_path}/nope: No such file or directory")


def test_without_to_it_is_the_socket_if_there_is_one(
    start_server: StartServer, paths: tuple[Path, Path], options: tuple[str, ...]
) -> None:
    server = start_server(*options)
    environment = {"AGGREGATOR_SOCKET": str(paths[0]), "AGGREGATOR_PORT": "1"}
    assert "pong" in aggregator("admin", "PING", environment=environment).stdout
    environment["AGGREGATOR_TO"] = f"127.0.0.1:{server.port}"
    server.stop()
    server.start(server.port)
    paths[0].unlink()
    assert "pong" in aggregator("admin", "PING", environment=environment).stdout
    del environment["AGGREGATOR_TO"]
    assert aggregator("admin", "PING", environment=environment).stderr.startswith("aggregator: 127.0.0.1:1: ")


@pytest.mark.netcat
@pytest.mark.parametrize("client", [["nc", "-N", "-U"], ["ncat", "-U"], ["socat", "-t", "30", "-", "UNIX-CONNECT:"]])
def test_netcats(
    client: list[str], start_server: StartServer, paths: tuple[Path, Path], options: tuple[str, ...]
) -> None:
    if not shutil.which(client[0]):
        pytest.skip(f"{client[0]} is not installed")
    start_server(*options)
    words = [*client[:-1], f"{client[-1]}{paths[0]}"] if client[0] == "socat" else [*client, str(paths[0])]
    done = subprocess.run(words, input=b"".join(events("e", 2000)), capture_output=True, timeout=30)
    assert (done.returncode, done.stdout.count(b'"stored"')) == (0, 2000)


def test_a_reader_that_has_closed_is_gone_in_seconds(
    start_server: StartServer, paths: tuple[Path, Path], options: tuple[str, ...]
) -> None:
    """It closed its half long before, so its end brings nothing that could be read."""
    server: ServerProcess = start_server(*options)
    with UnixPeer(paths[0]) as reader:
        reader.send(b"SUBSCRIBE t BEAT 0\n")
        assert reader.reply()["status"] == "ok"
        reader.half_close()
        wait_until(lambda: server.ask("STATS")["subscribers"] == 1)
        looked_at = server.ask("STATS")["uptime_s"] + 1.5  # the server looks once a second
        wait_until(lambda: server.ask("STATS")["uptime_s"] > looked_at)
        assert server.ask("STATS")["subscribers"] == 1
    wait_until(lambda: server.ask("STATS")["subscribers"] == 0)


def test_a_socket_in_a_folder_of_another_user_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_socket", denied)
    monkeypatch.setenv("AGGREGATOR_SOCKET", "/theirs/socket")
    monkeypatch.setenv("AGGREGATOR_PORT", "1234")
    parser = Parser()
    add_target(parser)
    configured = parser.parse_args([]).to.settle([])
    assert (configured.host, configured.port) == ("127.0.0.1", 1234)
