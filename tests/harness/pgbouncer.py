"""pgbouncer in front of a primary, in transaction mode: no client has a session to itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final

import psycopg

from tests.harness.polling import wait_until
from tests.harness.postgres import Server, new_folder, user
from tests.harness.wire import free_port

PROGRAM: Final = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")

_CONFIGURATION: Final = """
[databases]
* = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 10
logfile = {folder}/log
"""


class PgBouncer:
    """One pgbouncer, on a free port."""

    def __init__(self, server: Server) -> None:
        self.port = free_port()
        self._folder = new_folder()
        self._write("users", '"postgres" ""\n')
        self._write("ini", _CONFIGURATION.format(server=server.port, port=self.port, folder=self._folder))
        assert PROGRAM
        self._process = subprocess.Popen(
            [PROGRAM, "-q", str(self._folder / "ini")], stdin=subprocess.DEVNULL, cwd="/", **user()
        )
        try:
            wait_until(self._accepts)
        except AssertionError:
            self.close()
            raise

    def _write(self, name: str, text: str) -> Path:
        path = self._folder / name
        path.write_text(text)
        return path

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def _accepts(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def __enter__(self) -> PgBouncer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
