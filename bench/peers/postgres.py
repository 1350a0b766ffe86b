"""PostgreSQL: one INSERT … ON CONFLICT DO NOTHING for each batch, over one connection and over four.

The arguments are arrays in PostgreSQL's binary format, encoded before the clock starts. Each connection has a thread
that is outside Python while the server works.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.channel import Channel
from bench.peers.daemon import START_S, free_port, installed, libraries, running, unpacked
from bench.peers.peer import Event, NotRun, Peer, Running, Work

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

BATCHES: Final = (1000, 10_000)
CONNECTIONS: Final = (1, 4)

USER: Final = "nobody"
USER_GROUP: Final = "nogroup"
"""PostgreSQL refuses to run as root."""

TEXT: Final = 25
TEXT_ARRAY: Final = 1009
JSON: Final = 114
JSON_ARRAY: Final = 199

TABLE: Final = "CREATE TABLE events (topic text NOT NULL, event_id text NOT NULL, event json NOT NULL)"

LOAD: Final = """
INSERT INTO events
SELECT topic, event_id, format('{{"topic":"%s","event_id":"%s","timestamp":"2026-09-21T13:46:40.000Z",'
    '"source":"host-%s","payload":{{"level":"info","request":%s,'
    '"message":"GET /api/v1/items/%s answered 200 in %s ms"}}}}', topic, event_id, n % 7, n, n, n % 900)::json
FROM (SELECT n, 'app.service-' || n % 20 AS topic, gen_random_uuid()::text AS event_id
      FROM generate_series(1, {rows}) AS n) AS made
"""

KEY: Final = "ALTER TABLE events ADD PRIMARY KEY (topic, event_id)"
GROWN_KEY: Final = f"{KEY} WITH (fillfactor = 70)"
"""An index of random keys that has grown row by row is some 70 % full. One that is built at once is 90 % full, and each
insert would split a page where the grown one need not."""

INSERT: Final = b"INSERT INTO events SELECT * FROM unnest($1, $2, $3) ON CONFLICT DO NOTHING"
INSERT_ONE: Final = b"INSERT INTO events VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"


def peers(rows: int) -> list[Peer]:
    """An empty database, and one with ``rows`` rows already stored."""
    starts = {"": _start, f"; {rows} rows": _Loaded(rows).start} if rows else {"": _start}
    return [
        Peer(
            f"postgresql ({connections} connection{'s' * (connections > 1)}; batches of {batch}{where})",
            "fsynced before the ack; exact for ever",
            True,
            partial(start, batch, connections),
        )
        for where, start in starts.items()
        for connections in CONNECTIONS
        for batch in BATCHES
    ]


@contextmanager
def _start(batch: int, connections: int, folder: Path) -> Iterator[Running]:
    data = folder / "data"
    _make(data)
    with _server(data) as port:
        postgres = _Postgres(port, batch, connections)
        postgres.execute(TABLE)
        postgres.execute(KEY)
        yield postgres


class _Loaded:
    """A database with many rows. It is made once, beside the folders of the runs; each run gets a copy."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._made: Path | None = None

    @contextmanager
    def start(self, batch: int, connections: int, folder: Path) -> Iterator[Running]:
        if self._made is None:
            self._made = self._make(folder.with_name("postgresql"))
        data = folder / "data"
        subprocess.run(["cp", "-a", "--reflink=auto", f"{self._made}", f"{data}"], check=True)
        os.sync()  # so that the copy is not written out during the run
        with _server(data) as port:
            yield _Postgres(port, batch, connections, self._rows)

    def _make(self, data: Path) -> Path:
        shutil.rmtree(data, ignore_errors=True)  # left by an attempt that failed
        _make(data)
        with _server(data, "-c", "fsync=off") as port:
            postgres = _Postgres(port, 1, 1)
            # VACUUM now: otherwise autovacuum would go through the whole table during every run.
            for statement in (TABLE, LOAD.format(rows=self._rows), GROWN_KEY, "VACUUM ANALYZE", "CHECKPOINT"):
                postgres.execute(statement)
        return data


class _Postgres(Running):
    def __init__(self, port: int, batch: int, connections: int, loaded: int = 0) -> None:
        self._port = port
        self._batch = batch
        self._connections = connections
        self._loaded = loaded
        self._control = _connect(port)

    def execute(self, statement: str) -> Any:
        return self._check(self._control.exec_(statement.encode()))

    def send(self, work: Work) -> float:
        batches = [[arrays(batch) for batch in part.batches(self._batch)] for part in work.dealt(self._connections)]
        connections = [self._prepared(TEXT_ARRAY, JSON_ARRAY, INSERT) for _ in batches]
        with ThreadPoolExecutor(len(batches)) as threads:
            started = time.perf_counter()
            list(threads.map(self._send_all, connections, batches))
            return time.perf_counter() - started

    def _send_all(self, connection: PGconn, batches: list[list[bytes]]) -> None:
        for arrays in batches:
            self._check(connection.exec_prepared(b"insert", arrays, [1] * 3))

    def stored(self) -> int:
        return int(self.execute("SELECT count(*) FROM events").get_value(0, 0)) - self._loaded

    def channel(self, work: Work) -> Channel | None:
        if (self._batch, self._connections) != (BATCHES[0], CONNECTIONS[0]):
            return None  # single events are the same in every variant
        return _Channel(self._prepared(TEXT, JSON, INSERT_ONE), work)

    def versions(self) -> dict[str, str]:
        return {"postgresql": self.execute("SHOW server_version").get_value(0, 0).decode(), **installed("psycopg")}

    def _prepared(self, text: int, json: int, statement: bytes) -> PGconn:
        connection = _connect(self._port)
        self._check(connection.prepare(b"insert", statement, [text, text, json]))
        return connection

    def _check(self, result: Any) -> Any:
        if result.error_message:
            raise RuntimeError(result.error_message.decode())
        return result


class _Channel(Channel):
    """Each event is a statement and a transaction of its own; libpq's pipeline mode sends them without waiting."""

    def __init__(self, connection: PGconn, work: Work) -> None:
        from psycopg import pq

        super().__init__(work.count)
        connection.nonblocking = 1
        connection.enter_pipeline_mode()
        self._connection = connection
        self._rows = [[event.topic, event.event_id, event.line[:-1]] for event in work.events]
        self._unacked = 0
        self._end_of_transaction = pq.ExecStatus.PIPELINE_SYNC
        self.flush()

    def fileno(self) -> int:
        return int(self._connection.socket)

    @property
    def unsent(self) -> bool:
        return self._unsent

    def send(self, start: int, end: int) -> None:
        for row in self._rows[start:end]:
            self._connection.send_query_prepared(b"insert", row, [0] * 3)
            self._connection.pipeline_sync()
        self._unacked += end - start
        self.flush()

    def flush(self) -> None:
        self._unsent = bool(self._connection.flush())

    def receive(self) -> int:
        self._connection.consume_input()
        acks = 0
        while self._unacked > acks and not self._connection.is_busy():
            result = self._connection.get_result()  # None between a statement's result and the end of its transaction
            if result and result.error_message:
                raise RuntimeError(result.error_message.decode())
            acks += result is not None and result.status == self._end_of_transaction
        self._unacked -= acks
        return acks

    def close(self) -> None:
        self._connection.finish()


def arrays(batch: list[Event]) -> list[bytes]:
    """The three columns, ordered by key: otherwise connections with the same keys would wait for each other."""
    batch = sorted(batch)
    return [
        _array(TEXT, [event.topic for event in batch]),
        _array(TEXT, [event.event_id for event in batch]),
        _array(JSON, [event.line[:-1] for event in batch]),
    ]


def _array(kind: int, values: list[bytes]) -> bytes:
    """PostgreSQL's format: dimensions, has nulls, type; length and first index of the one; length and value of each."""
    head = struct.pack(">5i", 1, 0, kind, len(values), 1)
    return head + b"".join([len(value).to_bytes(4, "big") + value for value in values])


def _connect(port: int) -> PGconn:
    """Connect as soon as the server accepts clients, which is a little after it listens. Raises NotRun."""
    from psycopg import pq

    deadline = time.monotonic() + START_S
    while True:
        connection = pq.PGconn.connect(b"host=127.0.0.1 port=%d user=postgres" % port)
        if connection.status == pq.ConnStatus.OK:
            return connection
        if time.monotonic() > deadline:
            raise NotRun(connection.error_message.decode())
        time.sleep(0.02)


def _make(data: Path) -> None:
    """Make an empty database with PostgreSQL's defaults, including fsync. Raises NotRun."""
    package = unpacked("postgresql-*")
    installed("psycopg")
    data.mkdir()
    if os.geteuid() == 0:
        shutil.chown(data, USER, USER_GROUP)
    initdb = next(package.glob("usr/lib/postgresql/*/bin/initdb"))
    done = subprocess.run(
        [f"{initdb}", "-D", f"{data}", "-U", "postgres", "-A", "trust", "--no-locale", "-E", "UTF8"],
        env=libraries(package), capture_output=True, text=True, **_unprivileged(),
    )  # fmt: skip
    if done.returncode:
        raise NotRun(f"initdb: {' / '.join(done.stderr.strip().splitlines())}")


@contextmanager
def _server(data: Path, *options: str) -> Iterator[int]:
    package, port = unpacked("postgresql-*"), free_port()
    command = [
        f"{next(package.glob('usr/lib/postgresql/*/bin/postgres'))}", "-D", f"{data}", "-p", f"{port}",
        "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", *options,
    ]  # fmt: skip
    # After SIGTERM it would wait for its clients to leave.
    with running(command, data.with_suffix(".log"), port, signal.SIGINT, env=libraries(package), **_unprivileged()):
        yield port


def _unprivileged() -> dict[str, Any]:
    """The arguments that start a process as a user other than root."""
    if os.geteuid():
        return {}
    return {"user": USER, "group": USER_GROUP, "extra_groups": [], "cwd": "/"}
