"""A PostgreSQL for measurements, with a synchronous standby if one is wanted.

The programs come from an installed Debian package, or from what ``bench/peers/install`` has unpacked.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.peers.daemon import START_S, free_port, installed, libraries, running, unpacked
from bench.peers.peer import NotRun

USERS: Final = ("postgres", "nobody")
"""The users that root may start PostgreSQL as: it refuses to run as root."""

SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "2GB",
    "max_wal_size": "32GB",
    "checkpoint_timeout": "30min",
    "autovacuum": "off",  # a run is short and must not be disturbed
    "synchronous_standby_names": "",
    "wal_keep_size": "1GB",
}
"""The advice in README.md, as far as it matters for a run of minutes."""


class Cluster:
    """The running primary."""

    def __init__(self, port: int, standbys: int) -> None:
        self.port = port
        self.standbys = standbys

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> Any:
        """A psycopg connection that commits each statement."""
        import psycopg

        return psycopg.connect(self.url(database), autocommit=True)

    def wait(self) -> None:
        """Wait until the primary accepts clients, which is a little after it listens. Raises NotRun."""
        import psycopg

        deadline = time.monotonic() + START_S
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise NotRun(str(error)) from error
                time.sleep(0.02)
            else:
                return

    def ask(self, statement: str, database: str = "postgres") -> Any:
        """The first value of the first row, or None for a statement without rows."""
        with self.connect(database) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None


@contextmanager
def cluster(folder: Path, standby: bool = False) -> Iterator[Cluster]:
    """A new cluster in this folder, which is removed at the end. Raises NotRun."""
    installed("psycopg")
    folder.mkdir()
    folder.parent.chmod(0o755)  # PostgreSQL runs as another user
    try:
        primary, second = folder / "primary", folder / "standby"
        _initdb(primary)
        if standby:
            subprocess.run(["cp", "-a", str(primary), str(second)], check=True)
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(_serving(primary, SETTINGS))
            made = Cluster(port, int(standby))
            made.wait()
            if standby:
                (second / "standby.signal").touch()
                follows = f"host=127.0.0.1 port={port} user=postgres application_name=standby"
                stack.enter_context(_serving(second, SETTINGS | {"primary_conninfo": follows}))
                made.ask("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
                made.ask("SELECT pg_reload_conf()")
                made.ask("CREATE TABLE waits_for_the_standby ()")
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def version() -> str:
    """The version of PostgreSQL."""
    done = subprocess.run([str(_program("postgres")), "--version"], capture_output=True, text=True, env=_environment())
    return done.stdout.split()[2]


def _root() -> Path:
    """The folder that contains usr/lib/postgresql."""
    return Path("/") if any(Path("/usr/lib/postgresql").glob("*/bin/initdb")) else unpacked("postgresql-*")


def _program(name: str) -> Path:
    return max(_root().glob(f"usr/lib/postgresql/*/bin/{name}"), key=lambda path: float(path.parent.parent.name))


def _environment() -> dict[str, str]:
    root = _root()
    return {**os.environ} if root == Path("/") else libraries(root)


def _as_user() -> dict[str, Any]:
    if os.geteuid():
        return {}
    user = pwd.getpwnam(_user())
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}


def _user() -> str:
    for name in USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise NotRun(f"none of these users exists: {', '.join(USERS)}")


def _initdb(data: Path) -> None:
    data.mkdir()
    if os.geteuid() == 0:
        shutil.chown(data, _user())
    done = subprocess.run(
        [str(_program("initdb")), "-D", str(data), "-U", "postgres", "-A", "trust", "--no-locale", "-E", "UTF8"],
        env=_environment(), capture_output=True, text=True, **_as_user(),
    )  # fmt: skip
    if done.returncode:
        raise NotRun(f"initdb: {' / '.join(done.stderr.strip().splitlines())}")


@contextmanager
def _serving(data: Path, settings: dict[str, str]) -> Iterator[int]:
    port = free_port()
    command = [str(_program("postgres")), "-D", str(data), "-p", str(port)]
    for name, value in settings.items():
        if name != "synchronous_standby_names":  # is set later, and the command line would override that
            command += ["-c", f"{name}={value}"]
    with running(command, data.with_suffix(".log"), port, signal.SIGINT, env=_environment(), **_as_user()):
        yield port
