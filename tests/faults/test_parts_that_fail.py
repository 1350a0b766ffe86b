"""A defect of ours, in each part: what it ends, and what it must not touch. And the server as process 1.

The defects are put in by the program that runs the server here; the product has no switch for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from aggregator.consumer import Consumer
from aggregator.event import Event, Events
from aggregator.intake import Commit, Intake, Outcome, Submission
from aggregator.stats import Stats
from aggregator.store import Store
from tests.checker import Ledger, Sender, check_database
from tests.conftest import StartServer
from tests.faults.record import RecordFigures
from tests.server_process import wait_until
from tests.wire import Peer, event

_RUN = """
import sys
from aggregator import cli
sys.exit(cli.main())
"""

_CONSUMER_DIES = """
from aggregator import store
append, calls = store.Store.append, 0

async def broken(self, events):
    global calls
    calls += 1
    if calls > 20:
        raise RuntimeError("a defect in the consumer")
    return await append(self, events)

store.Store.append = broken
"""

_START_DIES = """
from aggregator import server

def broken(self, *arguments):
    raise RuntimeError("a defect at the start")

server.Server.__init__ = broken
"""

_PARSING_DIES = """
from aggregator import protocol
parse = protocol.parse

def broken(line):
    if b"POISON" in line:
        raise RuntimeError("a defect in the parser")
    return parse(line)

protocol.parse = broken
"""

_REPLYING_DIES = """
from aggregator import protocol
encode_acks = protocol.encode_acks

def broken(events, *rest):
    if any(event.event_id == "POISON" for event in events):
        raise RuntimeError("a defect in a reply")
    return encode_acks(events, *rest)

protocol.encode_acks = broken
"""


def test_a_consumer_that_dies_ends_the_server_and_no_ack_follows(
    start_server: StartServer, record_figures: RecordFigures
) -> None:
    """T46: exit code not 0 within 2 s, no ack after it, LOST = 0 after a restart. (The consumer itself:
    test_consumer.py.)
    """
    server = start_server(program=_CONSUMER_DIES + _RUN)
    ledger = Ledger()
    senders = [Sender(ledger, server.port, f"c{i}") for i in range(4)]
    wait_until(lambda: "the store has failed: a defect in the consumer" in server.log)
    failed = time.monotonic()
    assert server.wait() == 1
    ended_s = time.monotonic() - failed
    assert ended_s < 2
    for sender in senders:
        sender.join(30)
    assert set(ledger.errors.values()) == {"storage"}
    assert "RuntimeError" in server.log, "a defect has a traceback"
    sound = start_server(db=server.db)
    verdict = ledger.verify(sound)
    assert sound.stop() == 0
    check_database(sound.db)
    record_figures("the consumer dies", **verdict.figures, ended_s=ended_s)


def test_a_defect_at_the_start_ends_the_process(new_server: StartServer) -> None:
    """T46: although the database and its threads are open by then, the process ends within 2 s and does not hang."""
    server = new_server(program=_START_DIES + _RUN)
    started = time.monotonic()
    assert not server.try_to_start()
    assert server.wait() == 1
    assert time.monotonic() - started < 2
    assert "a defect at the start" in server.log


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("defect", [_PARSING_DIES, _REPLYING_DIES], ids=["judging a line", "writing a reply"])
def test_a_defect_in_a_connection_closes_that_one_alone(start_server: StartServer, defect: str, loop: str) -> None:
    """T46: the peer is not left waiting; the others, and events of the same batch, are not touched."""
    run = (
        _RUN
        if loop == "uvloop"
        else _RUN.replace("cli\n", "cli\nimport asyncio, functools\n").replace(
            "sys.exit", "cli.run_server = functools.partial(cli.run_server, new_loop=asyncio.new_event_loop)\nsys.exit"
        )
    )
    server = start_server(program=defect + run)
    ledger = Ledger()
    with Peer(server.port) as unlucky, Peer(server.port) as lucky:
        server.signal(signal.SIGSTOP)  # so that both are read in one turn, and stored in one batch
        unlucky.send(event("POISON"))
        for number in range(100):
            lucky.send(ledger.line(f"e{number}"))
        server.signal(signal.SIGCONT)
        assert unlucky.raw_rest() == b""
        for number in range(100):
            ledger.heard(f"e{number}", lucky.reply())
        assert lucky.ask(ledger.line("later"))["status"] == "stored"
    assert server.log.count("RuntimeError: a defect") == 1
    assert server.ask("HEALTH")["health"] == "healthy"
    wait_until(lambda: server.ask("STATS")["connections"] == 1)
    assert server.stop() == 0


async def test_who_waits_for_a_commit_that_was_cancelled_is_told_nothing(tmp_path: Path) -> None:
    """T13: a commit goes on in its thread when the task that awaits it is cancelled. Nobody may be told "failed" then.

    A lock that another program holds makes it last.
    """
    store = await Store.open(tmp_path / "events.db")
    intake, told = Intake(1000, 10**6), list[Outcome]()
    consumer = asyncio.create_task(Consumer(intake, store, Stats(), 1000, 1 << 30).run())

    def put(name: str) -> None:
        intake.put(Submission(Events.of([Event.of("t", name, b'{"event_id":"%s"}' % name.encode())]), told.append))

    async with asyncio.timeout(10):
        put("before")  # its topic is known then: the next commit is the very next thing that the store does
        while not told:
            await asyncio.sleep(0)
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        put("e")
        async with asyncio.timeout(10):
            while intake.events:
                await asyncio.sleep(0)
        consumer.cancel()
        await asyncio.gather(consumer, return_exceptions=True)
        other.execute("COMMIT")
    await store.close()  # when the commit has ended
    again = await Store.open(store.path)
    stored = await again.event("t", "e")
    await again.close()
    assert [outcome for outcome in told if not isinstance(outcome, Commit)] == []
    assert stored, "and it was stored"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a PID namespace")
def test_process_1_drains_on_sigterm(start_server: StartServer, record_figures: RecordFigures) -> None:
    """T47: as in a container, where a process without a handler is not ended by SIGTERM: exit code 0 within 5 s."""
    server = start_server(prefix=("unshare", "--pid", "--fork"))
    ledger = Ledger()
    senders = [Sender(ledger, server.port, f"c{i}") for i in range(2)]
    wait_until(lambda: all(sender.acks for sender in senders))
    (inner,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    assert Path(f"/proc/{inner}/status").read_text().split("NSpid:")[1].split("\n")[0].split()[1] == "1"
    started = time.monotonic()
    os.kill(int(inner), signal.SIGTERM)
    assert server.wait() == 0
    ended_s = time.monotonic() - started
    assert ended_s < 5
    for sender in senders:
        sender.join(30)
    server.restart()
    verdict = ledger.verify(server)
    (inner,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    os.kill(int(inner), signal.SIGTERM)
    assert server.wait() == 0
    check_database(server.db)
    record_figures("SIGTERM as process 1", **verdict.figures, ended_s=ended_s)
