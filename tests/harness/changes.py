"""Changes to the product, made in a server's own process before it starts: ``ServerProcess(changes=[…])``.

The product has no switch that turns on a defect, and none for limits that no administrator needs to change. A server
that needs such a change runs a program that makes the changes named here, and then runs the product's command line.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import os
import random
import signal
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import aggregator.storage
from aggregator import regular_file, streams
from aggregator.cli import serve
from aggregator.config import Config
from aggregator.event import Event, Events
from aggregator.server import (
    authenticated_peer,
    commands,
    consumer,
    credentials,
    deliveries,
    forward,
    listeners,
    peer,
    pieces,
    queries,
    server,
    signals,
    subscribe,
    tcp,
    tls,
    tls_context,
)
from aggregator.server.asker import Answer, Asker
from aggregator.server.live import Live
from aggregator.server.state import State
from aggregator.storage.engine import AnyEngine, Commit
from aggregator.storage.sqlite import database
from aggregator.storage.sqlite.batch import Batch
from aggregator.storage.sqlite.database import Database
from aggregator.storage.sqlite.store import Store
from aggregator.wire import Rejection, Word, meaning, replies
from aggregator.wire.interest import Interest
from tests.harness import storage
from tests.harness.dict_engine import DictEngine
from tests.harness.elsewhere import ELSEWHERE

Change = Callable[[], None]

CLOCK_STEP: Final = "CLOCK_STEP"
"""The environment variable that names the file of ``clock_that_can_step``."""

HOUR_NS: Final = 3_600_000_000_000

HANDSHAKE_STEP_S: Final = 0.02
"""How long a step takes with ``slow_handshakes``."""

KILL_SEED: Final = "KILL_SEED"
"""The environment variable that turns ``kills_itself_at_work`` on."""


def arguments(changes: Sequence[Change]) -> tuple[str, ...]:
    """Python's arguments to make these changes and run the product; without changes, the product as it is."""
    if not changes:
        return ("-m", "aggregator")
    calls = "".join(f"changes.{change.__name__}()\n" for change in changes)
    return (
        "-c",
        f"import sys\nfrom aggregator import cli\nfrom tests.harness import changes\n{calls}sys.exit(cli.main())",
    )


def _put(holder: Any, name: str, value: object) -> None:
    assert hasattr(holder, name), f"{holder} has no {name} any more"
    setattr(holder, name, value)


# --- limits and loops


def on_asyncio() -> None:
    """Run on asyncio's own loop, where a few things behave differently; the product always runs on uvloop."""
    _put(serve, "run_server", functools.partial(serve.run_server, new_loop=asyncio.new_event_loop))


def small_ledger() -> None:
    """Let a few hundred events be enough for flushes, merges and checkpoints."""
    storage.shrink_ledger(_put, keys=64, fanout=2, least=16, most=256)
    storage.checkpoint_after(_put, 1 << 20)
    _put(consumer, "IDLE_S", 0.01)


def quick_keepalive() -> None:
    """Notice a peer that has vanished after 1 + 3 x 1 s, instead of 60 + 4 x 15 s."""
    _put(listeners, "KEEPALIVE_IDLE_S", 1)
    _put(listeners, "KEEPALIVE_INTERVAL_S", 1)
    _put(listeners, "KEEPALIVE_PROBES", 3)


def clock_that_can_step() -> None:
    """With CLOCK_STEP, a path: the clock is an hour behind for as long as that file exists."""
    path, real = Path(os.environ[CLOCK_STEP]), time.time_ns
    _put(time, "time_ns", lambda: real() - HOUR_NS * path.exists())


def answers_cut_short() -> None:
    """Read one slice for each answer, as if all later slices had taken too long."""
    _put(queries, "ANSWER_S", 0)


def few_cursors() -> None:
    """Keep at most five names."""
    _put(subscribe, "MAX_CURSORS", 5)


def small_slices() -> None:
    """Read two blocks at a time, of four events each."""
    storage.shrink_blocks(_put, events=4, size_bytes=1 << 16)
    storage.shrink_slices(_put, blocks=2, heads=5)
    storage.shrink_plans(_put, listed=3, page=2)


def impatient() -> None:
    """Mute a client that does not read its replies after half a second, instead of after five."""
    _put(peer, "REPLY_DEADLINE_S", 0.5)


def patient() -> None:
    """After our half of the close, wait a minute instead of a second for the client to close its half."""
    _put(peer, "LINGER_S", 60.0)
    _put(authenticated_peer, "LINGER_S", 60.0)


def patient_with_silence() -> None:
    """While stopping, do not drop a silent client that has sent nothing for a second."""
    _put(peer, "QUIET_S", 60.0)


def patient_with_answers() -> None:
    """Cut no answer short because it has taken a quarter of a second."""
    _put(queries, "ANSWER_S", 60.0)


def patient_with_locks() -> None:
    """Wait a minute instead of a second for another program that writes to the database."""
    _put(database, "BUSY_TIMEOUT_S", 60.0)


def short_looks() -> None:
    """Check after half a second, instead of after a minute, whether a client that is slowed down has gone."""
    _put(authenticated_peer, "LOOK_S", 0.5)


def quick_own_answers() -> None:
    """Drop a client that leaves TLS's own answers unread after half a second, not five; shrink the kernel's buffer."""
    _put(tls, "OWN_BYTES_S", 0.5)
    keep_alive = listeners._keep_alive

    def with_small_buffer(sock: Any) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        keep_alive(sock)

    _put(listeners, "_keep_alive", with_small_buffer)


def hung_disk() -> None:
    """Hang whenever a file is read as a whole. Each attempt makes a file ``reached`` in the same folder."""

    def hang(path: Path) -> bytes:
        (path.parent / "reached").touch()
        threading.Event().wait()
        raise AssertionError

    _put(regular_file, "read", hang)


def slow_handshakes() -> None:
    """Take at least HANDSHAKE_STEP_S for each step of a TLS handshake: a few clients are enough for a flood."""
    shake_hands = tls.TlsLayer._shake_hands

    def slow(self: Any) -> None:
        time.sleep(HANDSHAKE_STEP_S)
        shake_hands(self)

    _put(tls.TlsLayer, "_shake_hands", slow)


def slow_to_accept_tls() -> None:
    """Start to read a client when it has written everything and has closed its socket, or after five seconds."""
    opened = listeners.Listeners._opened

    def opened_late(self: Any, connection: Any, handshake: Any, transport: Any) -> None:
        opened(self, connection, handshake, transport)
        transport.pause_reading()
        loop = asyncio.get_running_loop()
        latest = loop.time() + 5

        def look() -> None:
            if _is_open(transport.get_extra_info("peername")[1]) and loop.time() < latest:
                loop.call_later(0.05, look)
            else:
                transport.resume_reading()

        look()

    _put(listeners.Listeners, "_opened", opened_late)


def _is_open(port: int) -> bool:
    """Whether the client at this port of this machine has not closed its socket yet (proc(5), /proc/net/tcp)."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(local.endswith(f":{port:04X}") and state == "01" for _, local, _, state, *_ in map(str.split, lines))


def with_session_tickets() -> None:
    """Write two tickets to each TLS 1.3 client, as OpenSSL does by default."""
    make = tls_context._context

    def with_tickets(config: Config, verify_mode: ssl.VerifyMode) -> ssl.SSLContext:
        context = make(config, verify_mode)
        context.num_tickets = 2
        return context

    _put(tls_context, "_context", with_tickets)


def quick_silence() -> None:
    """Consider a reader gone that has acknowledged nothing for two seconds, instead of two minutes."""
    _put(tcp, "SILENT_MS", 2000)


def gathering_for_a_minute() -> None:
    """While many events wait, pause for a minute before reading more from a client that has sent few lines."""
    _put(peer, "GATHER_S", 60)


def short_turns() -> None:
    """Interpret no more than 50 lines of one client in one turn of the loop."""
    _put(meaning, "TURN_LINES", 50)


def too_full_buffers_are_logged() -> None:
    """Log if more than 512 KiB plus one line wait in this process for one subscriber."""
    push = deliveries.Deliveries.push

    def watched(self: deliveries.Deliveries, data: bytes) -> bool:
        room = push(self, data)
        size = 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()
        if size > 512 << 10 and size > (512 << 10) + max(map(len, data.splitlines())):
            logging.getLogger("aggregator").error("a write buffer has %d bytes", size)
        return room

    _put(deliveries.Deliveries, "push", watched)


# --- another engine


def dict_engine() -> None:
    """Keep the events in a dict, which is lost when the server ends."""
    _open_instead(DictEngine())


def slow_dict_engine() -> None:
    """Keep the events in a dict, with commits that take long."""
    _open_instead(DictEngine(write_s=[0.3]))


def _open_instead(engine: DictEngine) -> None:
    async def open_it(config: Config) -> AnyEngine:
        return engine

    _put(aggregator.storage, "open", open_it)


# --- log and signals


def short_log_queue() -> None:
    """Leave out lines of the log when only a few are waiting."""
    _put(streams, "QUEUE_BYTES", 1000)


def signals_repeat_for_a_minute() -> None:
    """Treat a second signal within a minute as a repetition of the first one."""
    _put(signals, "REPEAT_S", 60.0)


# --- credentials


def clients_from_elsewhere() -> None:
    """Give loopback clients the credentials of others, by the address that they have bound (``harness.elsewhere``)."""
    of = credentials.of

    def instead(transport: asyncio.BaseTransport) -> credentials.Credentials:
        found = of(transport)
        return ELSEWHERE.get(found.address or "", found)

    _put(credentials, "of", instead)


# --- defects


def consumer_dies() -> None:
    """Raise at batch 21 and at each later one."""
    append, calls = Store.append, 0

    async def broken(self: Store, batch: Batch) -> Commit:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise RuntimeError("a defect in the consumer")
        return await append(self, batch)

    _put(Store, "append", broken)


def start_dies() -> None:
    """Raise once the database is open."""

    def broken(*_: object) -> None:
        raise RuntimeError("a defect at the start")

    _put(server.Server, "__init__", broken)


def parsing_dies() -> None:
    """Raise at a line that contains POISON."""
    interpret = meaning.interpret

    def broken(line: bytes) -> Event | list[Event | Rejection] | meaning.Command | Rejection | None:
        if b"POISON" in line:
            raise RuntimeError("a defect in the parser")
        return interpret(line)

    _put(meaning, "interpret", broken)


def pinging_leaves_a_defect() -> None:
    """Raise where no code can catch it: in a finalizer, and in a thread."""

    class Broken:
        def __del__(self) -> None:
            raise RuntimeError("a defect in a finalizer")

    def broken() -> None:
        raise RuntimeError("a defect in a thread")

    async def ping(arguments: list[str], state: State, asker: Asker) -> Answer:
        Broken()
        threading.Thread(target=broken).start()
        return {"pong": True}

    command = commands.COMMANDS[Word.PING]
    commands.COMMANDS[Word.PING] = dataclasses.replace(command, function=ping)


def pinging_hangs() -> None:
    """Let the event loop stand still for ever, once a PING has come."""

    async def ping(arguments: list[str], state: State, asker: Asker) -> Answer:
        logging.getLogger("aggregator").error("PING hangs")
        threading.Event().wait()
        raise AssertionError

    command = commands.COMMANDS[Word.PING]
    commands.COMMANDS[Word.PING] = dataclasses.replace(command, function=ping)


def replying_dies() -> None:
    """Raise when an event with the id POISON is acked."""
    encode_acks = replies.encode_acks

    def broken(events: Events, *rest: Any) -> bytes:
        if "POISON" in events.event_ids:
            raise RuntimeError("a defect in a reply")
        return encode_acks(events, *rest)

    _put(replies, "encode_acks", broken)


def publishing_dies() -> None:
    """Raise at every third commit that is handed to live readers."""
    publish, calls = Live.publish, 0

    def broken(self: Live, *rest: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise RuntimeError("a defect in publishing")
        publish(self, *rest)

    _put(Live, "publish", broken)


def encoding_dies() -> None:
    """Raise at every third encoding of a commit, whichever interest it is for."""
    of_commit, calls = pieces.of_commit, 0

    def broken(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise RuntimeError("a defect in encoding")
        return of_commit(*arguments)

    _put(pieces, "of_commit", broken)


def slices_die() -> None:
    """Raise in the catching up of readers that have POISON among their patterns."""
    of_slice = pieces.of_slice

    def broken(interest: Interest, *rest: Any) -> Any:
        if "POISON" in interest.patterns:
            raise RuntimeError("a defect in catching up")
        return of_slice(interest, *rest)

    _put(pieces, "of_slice", broken)


# --- an SQLite that disobeys


def no_sync_at_commit() -> None:
    """Leave each commit in the page cache, while the engine believes that it is synced."""

    class Careless(database.Connection):
        def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
            if sql.startswith("PRAGMA synchronous"):
                sql = "PRAGMA synchronous = NORMAL" if "=" in sql else "SELECT 2"
            return super().execute(sql, parameters)

    _put(database, "Connection", Careless)


def deaf_to_synchronous() -> None:
    _be_deaf_to("synchronous", "NORMAL")


def deaf_to_journal_mode() -> None:
    _be_deaf_to("journal_mode", "DELETE")


def _be_deaf_to(name: str, value: str) -> None:
    """Set this pragma to this value, whatever value the engine asks for."""

    class Deaf(database.Connection):
        def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
            told = sql.startswith(f"PRAGMA {name} =")
            return super().execute(f"PRAGMA {name} = {value}" if told else sql, parameters)

    _put(database, "Connection", Deaf)


# --- death


def dies_before_the_third_ack_of_a_chunk() -> None:
    """Die when the third Forward chunk has been committed, and its ack is about to be written."""
    settled, calls = forward.ForwardConnection._settled, 0

    def deadly(self: Any, chunk: Any, outcome: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        settled(self, chunk, outcome)

    _put(forward.ForwardConnection, "_settled", deadly)


def kills_itself_at_work() -> None:
    """With KILL_SEED: die at a random instruction of SQLite's virtual machine, during the ledger's work."""
    if KILL_SEED not in os.environ:
        return
    moments = random.Random(int(os.environ[KILL_SEED]))
    calls = moments.randrange(1, 40)
    steps = int(10 ** moments.uniform(0, 4))

    async def count_down(opened: Database) -> None:
        nonlocal calls
        calls -= 1
        if calls == 0:
            await storage.on_each_step(opened.writer, step)

    def step() -> int:
        nonlocal steps
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    storage.before_each_work(_put, count_down)
