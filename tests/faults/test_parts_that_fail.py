"""A defect of ours in each part: what it ends, and what it must not touch. Also the server as process 1.

``tests.harness.changes`` makes the defects.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from aggregator.event import Event, Events
from aggregator.server.consumer import Consumer
from aggregator.server.health import Health
from aggregator.server.intake import Intake, Outcome, Submission
from aggregator.server.stats import Stats
from aggregator.storage.engine import Commit
from tests.harness import changes, storage
from tests.harness.account import Account
from tests.harness.changes import Change
from tests.harness.database_check import check_database
from tests.harness.load_client import Load
from tests.harness.other_program import holding_the_lock
from tests.harness.polling import until, wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import StartServer
from tests.harness.sizes import SLACK
from tests.harness.wire import Peer, event


def test_a_consumer_that_dies_ends_the_server_and_no_ack_follows(
    start_server: StartServer, record_figures: RecordFigures
) -> None:
    """T46: exit code 1 within 2 s, no later ack, LOST = 0 after a restart. The consumer itself: test_consumer.py."""
    server = start_server(changes=[changes.consumer_dies])
    account = Account()
    load = Load(account, server.port, 4)
    server.wait_for_log("the store has failed: a defect in the consumer")
    failed = time.monotonic()
    assert server.wait() == 1
    ended_s = time.monotonic() - failed
    assert ended_s < SLACK * 2
    load.finish()
    assert set(account.errors.values()) == {"storage"}
    assert "RuntimeError" in server.log, "a defect has a traceback"
    sound = start_server(db=server.db)
    verdict = account.verify_and_stop(sound)
    record_figures("the consumer dies", **verdict.figures, ended_s=ended_s)


def test_a_defect_at_the_start_ends_the_process(new_server: StartServer) -> None:
    """T46: the process ends within 2 s, although the database and its threads are open by then."""
    server = new_server(changes=[changes.start_dies])
    started = time.monotonic()
    assert not server.try_to_start()
    assert server.wait() == 1
    assert time.monotonic() - started < SLACK * 2
    assert "a defect at the start" in server.log


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(
    "defect", [changes.parsing_dies, changes.replying_dies], ids=["judging a line", "writing a reply"]
)
def test_a_defect_in_a_connection_closes_that_one_alone(start_server: StartServer, defect: Change, loop: str) -> None:
    """T46: the peer is not left waiting. Other peers, and events of the same batch, are not affected."""
    server = start_server(changes=[defect], loop=loop)
    account = Account()
    with Peer(server.port) as unlucky, Peer(server.port) as lucky:
        server.signal(signal.SIGSTOP)  # so that both connections are read in one turn, and stored in one batch
        unlucky.send(event("POISON"))
        for number in range(100):
            lucky.send(account.line(f"e{number}"))
        server.signal(signal.SIGCONT)
        assert unlucky.raw_rest() == b""
        for number in range(100):
            account.heard(f"e{number}", lucky.reply())
        assert lucky.ask(account.line("later"))["status"] == "stored"
    server.wait_for_log("RuntimeError: a defect")
    assert server.log.count("RuntimeError: a defect") == 1
    assert server.ask("HEALTH")["health"] == "healthy"
    wait_until(lambda: server.ask("STATS")["connections"] == 1)
    assert server.stop() == 0


async def test_who_waits_for_a_commit_that_was_cancelled_is_told_nothing(tmp_path: Path) -> None:
    """T13: a commit continues in its thread when the task awaiting it is cancelled. So no sender may be told "failed".

    A lock that another program holds makes the commit last.
    """
    store = await storage.open_store(tmp_path / "events.db")
    intake, told = Intake(1000, 10**6), list[Outcome]()
    consumer = asyncio.create_task(Consumer(intake, store, Stats(), Health(), 1000, lambda *_: None).run())

    def put(name: str) -> None:
        intake.put(Submission(Events.of([Event.of("t", name, b'{"event_id":"%s"}' % name.encode())]), told.append))

    put("before")  # makes its topic known, so that the next commit is the very next thing that the store does
    await until(lambda: told)
    with holding_the_lock(store.database.path):
        put("e")
        await until(lambda: not intake.waiting_events)
        consumer.cancel()
        await asyncio.gather(consumer, return_exceptions=True)
    await store.close()  # waits for the end of the commit
    again = await storage.open_store(store.database.path)
    stored = await again.event("t", "e")
    await again.close()
    assert [outcome for outcome in told if not isinstance(outcome, Commit)] == []
    assert stored, "and it was stored"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a PID namespace")
def test_process_1_drains_on_sigterm(start_server: StartServer, record_figures: RecordFigures) -> None:
    """T47: exit code 0 within 5 s. In a container, SIGTERM does not end a process 1 that has no handler for it."""
    server = start_server(prefix=("unshare", "--pid", "--fork"))
    account = Account()
    load = Load(account, server.port, 2)
    load.wait_for_acks()
    (inner,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    assert Path(f"/proc/{inner}/status").read_text().split("NSpid:")[1].split("\n")[0].split()[1] == "1"
    started = time.monotonic()
    os.kill(int(inner), signal.SIGTERM)
    assert server.wait() == 0
    ended_s = time.monotonic() - started
    assert ended_s < SLACK * 5
    load.finish()
    server.restart()
    verdict = account.verify(server)
    (inner,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    os.kill(int(inner), signal.SIGTERM)
    assert server.wait() == 0
    check_database(server.db)
    record_figures("SIGTERM as process 1", **verdict.figures, ended_s=ended_s)
