"""A PostgreSQL cluster that manages itself: Patroni with one etcd, from Debian's packages, on loopback."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, Final

from tests.harness import postgres
from tests.harness.polling import wait_until
from tests.harness.postgres import children, environment, kill_all, lives, new_folder, program_path, user
from tests.harness.wire import free_port

START_S: Final = 120.0
"""Patroni makes a primary and copies it twice; after each step it checks once a second."""

FAILOVER_S: Final = 90.0
"""The key of a dead leader lasts for 20 s, the minimum that Patroni allows."""

PROGRAMS: Final = ("patroni", "etcd")

_CONFIGURATION: Final = """
scope: logs
name: {name}
restapi: {{listen: "127.0.0.1:{rest}", connect_address: "127.0.0.1:{rest}"}}
etcd3: {{host: "127.0.0.1:{etcd}"}}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 1
    retry_timeout: 3
    synchronous_mode: true
    synchronous_mode_strict: true
    postgresql:
      use_pg_rewind: true
      parameters: {{max_connections: 100, wal_log_hints: "on", wal_keep_size: 512MB}}
  initdb: [encoding: UTF8, locale: C, auth: trust]
postgresql:
  listen: "127.0.0.1:{port}"
  connect_address: "127.0.0.1:{port}"
  data_dir: {folder}/{name}
  bin_dir: {programs}
  pgpass: {folder}/{name}.pgpass
  authentication: {{superuser: {{username: postgres}}, replication: {{username: postgres}}}}
  pg_hba: ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"]
  parameters: {{unix_socket_directories: "", shared_buffers: 64MB}}
"""


def missing() -> str | None:
    """The reason why Patroni cannot be run here; None if it can."""
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    return f"not installed: {', '.join(absent)}" if absent else postgres.missing()


class Node:
    """One Patroni with its PostgreSQL."""

    def __init__(self, folder: Path, name: str, etcd_port: int) -> None:
        self.name = name
        self.port, self.rest_port = free_port(), free_port()
        self._data = folder / name
        self._log = folder / f"{name}.log"
        self._file = folder / f"{name}.yml"
        self._process: subprocess.Popen[bytes] | None = None
        self._file.write_text(
            _CONFIGURATION.format(
                name=name, rest=self.rest_port, etcd=etcd_port, port=self.port, folder=folder,
                programs=program_path("postgres").parent,
            )
        )  # fmt: skip

    def start(self) -> None:
        """Start it; what it does then depends on the other nodes."""
        self._process = _start(self._log, "patroni", str(self._file))

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def ask(self, path: str, **body: str) -> Any:
        """An answer from Patroni's REST API."""
        data = json.dumps(body).encode() if body else None
        with urllib.request.urlopen(f"http://127.0.0.1:{self.rest_port}/{path}", data, timeout=60) as answer:
            text = answer.read().decode()
        return text if body else json.loads(text)

    def kill(self) -> None:
        """SIGKILL for Patroni, PostgreSQL and all its children, as when the machine dies."""
        assert self._process
        self._process.kill()
        self._process.wait()
        if server := self._server:
            killed = [*kill_all(server), server]
            wait_until(lambda: not any(map(lives, killed)))

    @property
    def _server(self) -> int | None:
        """The pid of PostgreSQL."""
        file = self._data / "postmaster.pid"
        pid = int(file.read_text().split("\n")[0]) if file.exists() else 0
        return pid if pid and lives(pid) and children(pid) else None

    def end(self) -> None:
        if self._process:
            self.kill()


class PatroniCluster:
    """Three nodes and an etcd. They handle a switchover or a dead leader; a client only needs all the hosts."""

    def __init__(self, nodes: int = 3) -> None:
        self.folder = new_folder()
        self._etcd_port = free_port()
        self.nodes = [Node(self.folder, f"server{number}", self._etcd_port) for number in range(nodes)]
        self._etcd: subprocess.Popen[bytes] | None = None

    def start(self) -> PatroniCluster:
        """Start all of them, and wait until one standby is synchronous."""
        peers, clients = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{self._etcd_port}"
        self._etcd = _start(
            self.folder / "etcd.log", "etcd", "--data-dir", str(self.folder / "etcd"),
            "--listen-client-urls", clients, "--advertise-client-urls", clients, "--listen-peer-urls", peers,
            "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}",
        )  # fmt: skip
        for node in self.nodes:
            node.start()
        wait_until(lambda: self._is_whole(len(self.nodes)), START_S)
        return self

    def members(self) -> dict[str, str]:
        """The role of each running node, as reported by the first node that answers."""
        for node in self.nodes:
            try:
                told = node.ask("cluster")["members"]
            except OSError:
                continue
            return {one["name"]: one["role"] for one in told if one["state"] in ("running", "streaming")}
        return {}

    def _is_whole(self, count: int) -> bool:
        roles = list(self.members().values())
        return len(roles) >= count and {"leader", "sync_standby"} <= set(roles)

    @property
    def leader(self) -> Node | None:
        """The current primary."""
        roles = self.members()
        return next((node for node in self.nodes if roles.get(node.name) == "leader"), None)

    def switch_over(self) -> tuple[Node, Node]:
        """Make a synchronous standby the leader, as before an upgrade; return the old and the new leader."""
        old = self.leader
        assert old
        roles = self.members()
        new = next(node for node in self.nodes if roles.get(node.name) == "sync_standby")
        old.ask("switchover", leader=old.name, candidate=new.name)
        wait_until(lambda: self.leader is new, FAILOVER_S)
        return old, new

    def wait_for_another_leader(self, old: Node) -> Node:
        """Wait until another node is the leader; return it."""
        wait_until(lambda: self.leader not in (None, old), FAILOVER_S)
        assert self.leader
        return self.leader

    def wait_until_whole(self, count: int) -> None:
        """Wait until this many nodes run, one of them as a synchronous standby."""
        wait_until(lambda: self._is_whole(count), FAILOVER_S)

    def url(self, database: str = "postgres") -> str:
        """A URL with all nodes, which a client needs to survive a failover."""
        return f"postgresql://postgres@{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}/{database}"

    def end(self) -> None:
        """Stop everything and remove the folder."""
        for node in self.nodes:
            node.end()
        if self._etcd:
            self._etcd.send_signal(signal.SIGKILL)
            self._etcd.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _start(log: Path, *command: str) -> subprocess.Popen[bytes]:
    """Start a program as a user who may run PostgreSQL, in the folder of its log."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=log.parent,
            env={name: value for name, value in environment().items() if not name.startswith(("PYTHON", "ETCD"))},
            **user(),
        )  # fmt: skip
