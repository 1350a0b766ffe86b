"""Starting: the server is ready, or ends within a second with one clear line and an exit code, and harms nothing."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.harness.account import Account
from tests.harness.load_client import LoadClient
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import SLACK
from tests.harness.wire import event, exchange


def serve(*options: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a server that is not expected to start."""
    return subprocess.run(
        [sys.executable, "-m", "aggregator", *options],
        capture_output=True, text=True, timeout=60, cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


def serve_on(db: Path | str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a server that is not expected to start, on this database."""
    return serve("serve", "--port", "0", "--silent-port", "0", "--db", str(db), cwd=cwd)


def assert_one_clear_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("aggregator")
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["serve", "--port", "99999"], ["--port", "0 to 65535"]),
        (["serve", "--port", "http"], ["--port", "'http'"]),
        (["serve", "--silent-port", "on"], ["--silent-port"]),
        (["serve", "--queue-events", "0"], ["--queue-events"]),
        (["serve", "--max-batch", "-5"], ["--max-batch"]),
        (["serve", "--max-line-bytes", "1MiB"], ["--max-line-bytes"]),
        (["serve", "--drain-timeout", "nan"], ["--drain-timeout"]),
        (["serve", "--log-level", "loud"], ["--log-level"]),
        (["serve", "--nonsense"], ["--nonsense"]),
        (["nonsense"], ["nonsense"]),
        (["send", "--to", "nowhere"], ["--to", "HOST:PORT"]),
    ],
)
def test_a_bad_option_is_one_line(tmp_path: Path, options: list[str], words: list[str]) -> None:
    assert_one_clear_line(serve(*options, cwd=tmp_path), 2, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_environment_variable_is_named(tmp_path: Path) -> None:
    assert_one_clear_line(serve(cwd=tmp_path, AGGREGATOR_QUEUE_EVENTS="many"), 2, "AGGREGATOR_QUEUE_EVENTS", "'many'")


def test_a_port_in_use(tmp_path: Path) -> None:
    """T48."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = serve("serve", "--port", port, "--silent-port", "0", cwd=tmp_path)
    assert_one_clear_line(done, 1, f"cannot listen on 127.0.0.1:{port}", "in use")


def test_an_address_that_is_not_ours(tmp_path: Path) -> None:
    done = serve("serve", "--host", "192.0.2.1", "--port", "0", cwd=tmp_path)
    assert_one_clear_line(done, 1, "cannot listen on 192.0.2.1:0")
    done = serve("serve", "--host", "no.such.host.invalid", "--port", "0", cwd=tmp_path)
    assert_one_clear_line(done, 1, "cannot listen on no.such.host.invalid:0")
    done = serve("serve", "--host", "a..b", "--port", "0", cwd=tmp_path)
    assert_one_clear_line(done, 1, "cannot listen on a..b:0")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """T48. A folder that is merely missing is made."""
    (tmp_path / "file").write_text("in the way")
    done = serve_on("file/events.db", tmp_path)
    assert_one_clear_line(done, 1, "cannot use", "file/events.db", ": Not a directory")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """T48."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o555)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o011)
    python = Path(sys.executable).resolve()
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(python), "-m", "aggregator",
         "serve", "--port", "0", "--db", str(folder / "events.db")],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
    )  # fmt: skip
    if "ModuleNotFoundError" in done.stderr or done.returncode in (126, 127):
        pytest.skip("another user cannot run this Python")
    assert_one_clear_line(done, 1, "cannot use", "Permission denied")


def test_a_second_server_on_the_same_database(server: ServerProcess, tmp_path: Path) -> None:
    """T16: refused within a second under any spelling of its path; the first server, under load, is not disturbed."""
    exchange(server.port, event("e"))
    account = Account()
    client = LoadClient(account, server.port, "c")
    client.wait_for_acks()
    link = tmp_path / "link.db"
    link.symlink_to(server.db)
    for path in (server.db, link, server.db.parent / ".." / "data" / "events.db"):
        started = time.monotonic()
        done = serve_on(path, tmp_path)
        assert time.monotonic() - started < SLACK * 1
        assert_one_clear_line(done, 1, "in use by another aggregator", str(server.pid))

    client.wait_for_acks()
    client.stop()
    client.finish()
    assert not account.errors
    assert len(account.acked) == len(account.sent)
    assert server.ask("HEALTH")["health"] == "healthy"


FOREIGN = {
    "no database": b"this is a text, and no database at all\n" * 1000,
    "short": b"x",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=list(FOREIGN))
def test_a_file_that_is_no_database_is_left_as_it_was(tmp_path: Path, content: bytes) -> None:
    """T17."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    done = serve_on(path, tmp_path)

    assert_one_clear_line(done, 1, str(path), "not a database")
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE notes (text)")
    other.close()
    before = path.read_bytes()
    done = serve_on(path, tmp_path)

    assert_one_clear_line(done, 1, str(path), "another program")
    assert path.read_bytes() == before


def test_the_wal_of_another_program_is_left_as_it_was(tmp_path: Path) -> None:
    """A crash of that program left the WAL; SQLite would move it into the database."""
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("CREATE TABLE notes (text)")
    copy = tmp_path / "crashed.db"
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    other.close()
    before = [Path(f"{copy}{suffix}").read_bytes() for suffix in ("", "-wal")]
    done = serve_on(copy, tmp_path)

    assert_one_clear_line(done, 1, "another program")
    assert [Path(f"{copy}{suffix}").read_bytes() for suffix in ("", "-wal")] == before


@pytest.mark.parametrize("target", ["loop.db", "/"])
def test_a_path_that_can_be_no_file(tmp_path: Path, target: str) -> None:
    (tmp_path / "loop.db").symlink_to("loop.db")
    done = serve_on(target, tmp_path)

    assert_one_clear_line(done, 1, "cannot use")


@pytest.mark.parametrize(("schema", "age"), [(99, "a newer"), (1, "an older, unreleased")])
def test_a_file_of_another_schema_is_refused(server: ServerProcess, tmp_path: Path, schema: int, age: str) -> None:
    server.stop()
    with sqlite3.connect(server.db) as database:
        database.execute(f"PRAGMA user_version = {schema}")
    database.close()
    before = server.db.read_bytes()
    done = serve_on(server.db, tmp_path)

    assert_one_clear_line(done, 1, f"{age} aggregator", f"schema {schema}")
    assert server.db.read_bytes() == before


@pytest.mark.parametrize("left", [0, None])
def test_no_fresh_database_is_made_over_a_wal_that_holds_events(
    server: ServerProcess, tmp_path: Path, left: int | None
) -> None:
    """T17."""
    exchange(server.port, event("e"))
    server.kill()
    if left is None:
        server.db.unlink()
    else:
        os.truncate(server.db, left)
    wal = server.db.with_name("events.db-wal")
    before = wal.read_bytes()
    done = serve_on(server.db, tmp_path)

    assert_one_clear_line(done, 1, "missing or empty", "events.db-wal")
    assert wal.read_bytes() == before


def test_a_truncated_database_is_refused(server: ServerProcess, tmp_path: Path) -> None:
    """T17."""
    exchange(server.port, event("e"))
    server.stop()
    os.truncate(server.db, 8192)
    done = serve_on(server.db, tmp_path)

    assert_one_clear_line(done, 1, "malformed")


def test_more_connections_than_descriptors_allow(tmp_path: Path) -> None:
    done = serve("serve", "--port", "0", "--max-connections", "2000000000", cwd=tmp_path)

    assert_one_clear_line(done, 1, "max-connections", "descriptors")


def test_bare_words_serve_and_options_come_from_the_environment(tmp_path: Path, start_server: StartServer) -> None:
    for words in ([], ["serve"], ["--log-level", "info"]):
        environment = {
            **os.environ, "AGGREGATOR_PORT": "0", "AGGREGATOR_SILENT_PORT": "off", "AGGREGATOR_DB": "deep/er/e.db",
            "AGGREGATOR_QUEUE_EVENTS": "123", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        with subprocess.Popen(
            [sys.executable, "-m", "aggregator", *words],
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
        ) as process:
            assert process.stderr
            line = process.stderr.readline()
            assert "ready: acked port 127.0.0.1:" in line
            assert "silent port off" in line
            port = int(line.split("127.0.0.1:")[1].split(",")[0])
            assert exchange(port, b"STATS\n")[0]["queue_limit"] == 123
            process.terminate()
            assert "SIGTERM" in process.stderr.readline()
            assert "stopped: 0 events" in process.stderr.readline()
            assert process.wait(60) == 0
    assert (tmp_path / "deep" / "er" / "e.db").exists()


def test_help_names_every_option_with_its_default_and_variable(tmp_path: Path) -> None:
    done = serve("serve", "--help", cwd=tmp_path)

    text = " ".join(done.stdout.split())
    for option, default in [
        ("--host", "127.0.0.1"), ("--port", "8080"), ("--silent-port", "8081"), ("--db", "data/events.db"),
        ("--queue-events", "30000"), ("--queue-bytes", "67108864"), ("--max-batch", "10000"),
        ("--max-line-bytes", "1048576"), ("--max-connections", "960"), ("--line-timeout", "120.0"),
        ("--address-connections", "720"), ("--reply-buffer-bytes", "1048576"),
        ("--wal-limit-bytes", "1073741824"), ("--drain-timeout", "5.0"), ("--log-level", "info"),
    ]:  # fmt: skip
        variable = "AGGREGATOR_" + option[2:].replace("-", "_").upper()
        assert f"({default}; {variable})" in text, option


def test_the_version(tmp_path: Path) -> None:
    assert serve("--version", cwd=tmp_path).stdout.startswith("aggregator ")
