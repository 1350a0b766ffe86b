"""Real PostgreSQL servers on loopback, in a temporary folder: a primary, its standbys, and the faults they may have.

Debian's package brings the programs (tests/postgres/install). No installed cluster is used or touched. PostgreSQL does
not run as root, so root starts it as the user of that package.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.harness.polling import DEADLINE_S, wait_until
from tests.harness.wire import free_port

ROOT_USER: Final = "postgres"

SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "wal_keep_size": "512MB",  # a standby that was stopped for a test can still get the WAL that it has missed
    "wal_retrieve_retry_interval": "100ms",
    "default_toast_compression": "lz4",
    "autovacuum_naptime": "1h",  # nothing starts on its own in the middle of a test
    "log_line_prefix": "%m [%p] ",
    "lc_messages": "C",
}
"""The settings of every server. fsync stays on: the engine refuses a server without it."""

START_S: Final = 90.0
"""After a crash PostgreSQL syncs each of its thousand files before it accepts connections."""

_databases = itertools.count()


def missing() -> str | None:
    """The reason why PostgreSQL cannot be run here; None if it can."""
    if _programs() is None:
        return "PostgreSQL >= 15 is not installed"
    if os.geteuid() == 0 and subprocess.run(["id", ROOT_USER], capture_output=True).returncode:
        return f"there is no user {ROOT_USER}, and root may not run PostgreSQL"
    return None


def user() -> dict[str, Any]:
    """Popen's arguments to start a program as a user who may run PostgreSQL."""
    return {"user": ROOT_USER, "group": ROOT_USER, "extra_groups": []} if os.geteuid() == 0 else {}


def new_folder() -> Path:
    """A folder that this user can access; pytest's own folders are for our user alone."""
    folder = Path(tempfile.mkdtemp(prefix="aggregator-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, ROOT_USER, ROOT_USER)
    return folder


def run(program: str, *arguments: str, **options: str) -> None:
    """Run one of PostgreSQL's programs to its end."""
    command = [
        str(program_path(program)),
        *arguments,
        *(f"--{name.replace('_', '-')}={options[name]}" for name in options),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment(), timeout=120, **user())
    assert done.returncode == 0, f"{program}: {done.stderr}"


def program_path(name: str) -> Path:
    """The path of this program of PostgreSQL."""
    programs = _programs()
    assert programs, missing()
    return programs / name


class Server:
    """One PostgreSQL server. Its port never changes."""

    def __init__(self, folder: Path, name: str, **settings: str) -> None:
        self.name = name
        self.data = folder / name
        self.port = free_port()
        self._settings = {**SETTINGS, **settings}
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    # --- made

    def make(self) -> None:
        """An empty server: a copy, because initdb takes longer. All copies share a system id, so they can replicate."""
        subprocess.run(["cp", "-a", "--reflink=auto", str(_template()), str(self.data)], check=True)

    def back_up(self, primary: Server) -> None:
        """Make it a copy of a running primary."""
        shutil.rmtree(self.data, ignore_errors=True)
        run("pg_basebackup", "-D", str(self.data), "-d", primary.url(), "-c", "fast", "--no-sync", "-X", "stream")

    def be_standby(self, primary: Server) -> None:
        """Follow this primary from the next start on, under this server's name."""
        self._settings["primary_conninfo"] = self._follows(primary)
        (self.data / "standby.signal").touch()
        self._own("standby.signal")

    def _follows(self, primary: Server) -> str:
        return f"host=127.0.0.1 port={primary.port} user=postgres application_name={self.name}"

    def _own(self, name: str) -> None:
        if os.geteuid() == 0:
            shutil.chown(self.data / name, ROOT_USER, ROOT_USER)

    # --- running

    def start(self) -> Server:
        """Start it and wait until it accepts connections."""
        self.start_only()
        wait_until(lambda: self.accepts or self._process.poll() is not None, START_S)  # type: ignore[union-attr]
        assert self.accepts, f"{self.name} did not start: {self.log[-2000:]}"
        return self

    def start_only(self) -> None:
        """Start it without waiting; it may never accept connections."""
        self._configure()
        command = [str(program_path("postgres")), "-D", str(self.data), "-p", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=environment(), **user()
            )

    @property
    def log(self) -> str:
        """Everything that it has written to standard error, in all its runs."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def accepts(self) -> bool:
        """Whether it accepts connections."""
        with contextlib.suppress(psycopg.OperationalError), self.connect():
            return True
        return False

    def stop(self) -> None:
        """End it cleanly: everything it has is written to disk."""
        self._end(signal.SIGINT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL for it and all its children, as when the machine dies: no connection is told, no file is written."""
        assert self._process
        killed = kill_all(self._process.pid)
        self._process.wait(DEADLINE_S)
        wait_until(lambda: not any(map(lives, killed)))

    def quit(self) -> None:
        """Tell it to end at once, whatever state the test has left it in."""
        if self._process and self.running:
            self.thaw()
            self._process.send_signal(signal.SIGQUIT)

    def end(self) -> None:
        """Tell it to end at once, and wait until it has ended."""
        self.quit()
        if self._process:
            self._process.wait(60)

    def _end(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)
        self._process.wait(60)

    @property
    def children(self) -> list[int]:
        """The pids of its processes except the first."""
        assert self._process
        return children(self._process.pid)

    def freeze(self, what: str = "") -> None:
        """SIGSTOP for all its processes, or for those whose title contains this word, such as ``walreceiver``."""
        self._signal(signal.SIGSTOP, what)

    def thaw(self, what: str = "") -> None:
        """Let these processes continue."""
        self._signal(signal.SIGCONT, what)

    def _signal(self, number: signal.Signals, what: str) -> None:
        assert self._process
        found = [pid for pid in (self._process.pid, *self.children) if what in _title(pid)]
        assert found, f"{self.name} has no {what}"
        for pid in found:
            with contextlib.suppress(ProcessLookupError):  # a session that has just ended
                os.kill(pid, number)

    # --- settings and questions

    def url(self, database: str = "postgres", **parameters: str) -> str:
        """The URL of one of its databases."""
        return url([self], database, **parameters)

    def connect(self, database: str = "postgres", **parameters: Any) -> psycopg.Connection[Any]:
        """A bare client with autocommit. Synchronous replication does not affect it unless it writes."""
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=5, **parameters)

    def ask(self, statement: str, database: str = "postgres") -> Any:
        """The first value of the first row of the result; None if there is no row."""
        rows = self.rows(statement, database)
        return rows[0][0] if rows else None

    def rows(self, statement: str, database: str = "postgres") -> list[Any]:
        """All rows of the result."""
        with self.connect(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def set(self, **settings: str) -> None:
        """Change settings of the running server, and wait until they are in force."""
        self._settings.update(settings)
        self._configure()
        self.ask("SELECT pg_reload_conf()")
        wait_until(lambda: all(self.ask(f"SHOW {name}") == value for name, value in settings.items()))

    def _configure(self) -> None:
        lines = [f"{name} = '{value}'\n" for name, value in self._settings.items()]
        (self.data / "postgresql.conf").write_text("".join(lines))
        self._own("postgresql.conf")

    # --- replication

    def follow(self, primary: Server) -> None:
        """Be a standby of another primary from now on."""
        self.set(primary_conninfo=self._follows(primary))

    def promote(self) -> None:
        """Become the primary, and wait until it is."""
        assert self.ask("SELECT pg_promote(true, 60)")

    @property
    def received(self) -> int:
        """How many bytes of WAL a standby has on disk."""
        return int(self.ask("SELECT pg_last_wal_receive_lsn() - '0/0'::pg_lsn"))

    def wait_until_received(self, position: int) -> None:
        """Wait until a standby has this many bytes of WAL on disk."""
        wait_until(lambda: self.received >= position, START_S)

    def wait_for_standbys(self, count: int) -> None:
        """Wait until this many standbys are streaming."""
        streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        wait_until(lambda: self.ask(streaming) >= count, START_S)

    def waiting(self, what: str = "") -> list[int]:
        """The pids of the sessions whose commit waits for a standby, and whose statement contains this word."""
        waits = f"SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%{what}%'"
        return [pid for (pid,) in self.rows(waits)]

    def wait_for_waiting(self, what: str = "", but: int = 0) -> int:
        """Wait until there is such a session other than ``but``; return its pid."""
        wait_until(lambda: set(self.waiting(what)) - {but})
        return (set(self.waiting(what)) - {but}).pop()


class Cluster:
    """A primary and its standbys. All have the same configuration, so a promoted standby waits for the others."""

    def __init__(self, standbys: int = 0, synchronous: str | None = None, **settings: str) -> None:
        self.folder = new_folder()
        self.servers = [Server(self.folder, f"server{number}", **settings) for number in range(standbys + 1)]
        names = ", ".join(server.name for server in self.servers)
        self._synchronous = f"ANY 1 ({names})" if standbys and synchronous is None else synchronous or ""
        self.primary = self.servers[0]

    def start(self) -> Cluster:
        """Make and start all servers."""
        for server in self.servers:
            server.make()
            if server is not self.primary:
                server.be_standby(self.primary)
            server.start()
        if self.standbys:
            self.primary.wait_for_standbys(len(self.standbys))
        if self._synchronous:
            for server in self.servers:
                server.set(synchronous_standby_names=self._synchronous)
        return self

    @property
    def standbys(self) -> list[Server]:
        return [server for server in self.servers if server is not self.primary]

    def url(self, database: str = "postgres", **parameters: str) -> str:
        """A URL with all servers, which a client needs to survive a failover."""
        return url(self.servers, database, **parameters)

    def new_database(self) -> str:
        """Create a database; return its name."""
        name = f"logs{os.getpid()}_{next(_databases)}"
        self.primary.ask(f"CREATE DATABASE {name}")
        return name

    def fail_over(self) -> Server:
        """Promote the standby with the most WAL, let the others follow it; return the old primary, which is down."""
        old = self.primary
        alive = [standby for standby in self.standbys if standby.running]
        self.primary = max(alive, key=lambda standby: standby.received)
        self.primary.promote()
        for standby in alive:
            if standby is not self.primary:
                standby.follow(self.primary)
        return old

    def rejoin(self, server: Server) -> None:
        """Make a server that is down a standby of the primary, from a new base backup."""
        server.back_up(self.primary)
        server.be_standby(self.primary)
        server.start()
        self.primary.wait_for_standbys(len([one for one in self.standbys if one.running]))

    def end(self) -> None:
        """Stop everything and remove the folder."""
        for server in self.servers:
            server.quit()
        for server in self.servers:
            server.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Cluster:
        try:
            return self.start()
        except BaseException:
            self.end()
            raise

    def __exit__(self, *_: object) -> None:
        self.end()


def url(servers: Sequence[Server], database: str, **parameters: str) -> str:
    """The URL of a database on any of several servers."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"postgresql://postgres@{hosts}/{database}{'?' if query else ''}{query}"


@functools.cache
def _programs() -> Path | None:
    """The folder of the programs of the newest installed version; None if there is none from 15 on."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    new = [path for path in found if float(path.parent.name) >= 15]
    return max(new, key=lambda path: float(path.parent.name), default=None)


@functools.cache
def _template() -> Path:
    """The data folder of an empty server, made once in each test process."""
    folder = new_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    data = folder / "template"
    run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--no-locale", "-E", "UTF8", "--no-sync")
    return data


def environment() -> dict[str, str]:
    """The environment for PostgreSQL's programs: ours, without the variables that would send them elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def _parents() -> dict[int, int]:
    """The parent of each process that is not a zombie."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(stat.parent.name)] = int(parent)
    return parents


def children(pid: int) -> list[int]:
    """The live child processes of this process."""
    return [child for child, parent in _parents().items() if parent == pid]


def kill_all(pid: int) -> list[int]:
    """SIGKILL for a process and its children; return the pids of the children."""
    os.kill(pid, signal.SIGSTOP)  # so that it starts no other child
    found = children(pid)
    for one in (*found, pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    return found


def lives(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    return pid in _parents()


def _title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


StartCluster = Callable[..., Cluster]
"""The type of the fixture ``start_cluster``, which takes Cluster's arguments."""
