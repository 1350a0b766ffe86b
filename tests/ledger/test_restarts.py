"""A server ends in the middle of flushes and merges, and the next start continues them."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import time

import pytest

from tests.harness import changes, storage
from tests.harness.account import Account
from tests.harness.database_check import check_database
from tests.harness.keys import append, keys_of
from tests.harness.load_client import Load
from tests.harness.polling import wait_until
from tests.harness.server_process import StartServer
from tests.harness.storage import OpenStore
from tests.harness.wire import exchange


async def test_a_run_that_was_unfinished_when_the_server_ended_is_made_again(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.shrink_ledger(monkeypatch.setattr, keys=100, least=10)
    store = await open_store()
    keys = keys_of("k", 130)
    await append(store, keys[:100])
    await storage.work(store, quiet=False)
    await append(store, keys[100:])
    ((begun,),) = await store.database.write("SELECT count(*) FROM keys_1")
    assert 0 < begun < 100
    store = await open_store()
    assert store.ledger.run_count == 0
    assert await append(store, keys) == (131, {i: i + 1 for i in range(130)})
    await storage.flush(store)
    await storage.finish_work(store)

    assert storage.runs(store) == [(1, 130)]
    tables = await store.database.write("SELECT name FROM sqlite_schema WHERE name GLOB 'keys_*'")
    assert tables == [("keys_2",)], "the table of the unfinished one was dropped"
    assert await append(store, keys) == (261, {i: i + 1 for i in range(130)})
    await store.close()
    check_database(store.database.path)


@pytest.mark.timeout(300)  # a busy machine takes a while for this many events
@pytest.mark.parametrize("at_work", [False, True], ids=["at any moment", "at work"])
def test_kill_9_during_flushes_and_merges_loses_and_doubles_nothing(
    start_server: StartServer, at_work: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    server = start_server(changes=[changes.small_ledger, changes.kills_itself_at_work])
    account = Account()
    for number in range(8):
        load = Load(account, server.port, 3, f"r{number}c", in_flight=50)
        if at_work and number:
            assert server.wait() == -signal.SIGKILL
        else:
            load.wait_for_acks(100)
            time.sleep(moments.uniform(0.005, 0.2))  # the moment of the fault, not a wait for anything
            server.kill()
        load.finish()
        if at_work and number < 7:
            monkeypatch.setenv(changes.KILL_SEED, str(moments.getrandbits(32)))
        else:
            monkeypatch.delenv(changes.KILL_SEED, raising=False)
        server.restart()
    account.verify(server)
    stored = {name: one["seq"] for name, one in server.stored("t").items()}
    lines = list(account.sent.values())
    moments.shuffle(lines)
    for start in range(0, len(lines), 1000):
        for reply in exchange(server.port, b"".join(lines[start : start + 1000])):
            assert (reply["status"], reply["seq"]) == ("duplicate", stored[reply["event_id"]])
    with contextlib.closing(sqlite3.connect(f"{server.db.as_uri()}?mode=ro", uri=True)) as database:
        wait_until(lambda: database.execute("SELECT max(level) > 1 FROM runs").fetchone() == (1,))  # there was a merge
    assert server.stop() == 0
    assert "Traceback" not in server.log
    check_database(server.db)
    print(f"{len(lines)} events")
