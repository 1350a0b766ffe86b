"""The server is stopped for a while, or killed, mixed with peers that are reset."""

from __future__ import annotations

import random
import signal
import time

from tests.harness.account import Account
from tests.harness.load_client import Load, LoadClient
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess
from tests.harness.sizes import NEMESIS_ROUNDS, STOPPED_S
from tests.harness.wire import Peer, event


def test_a_stopped_server_goes_on_where_it_was(
    server_on_both_loops: ServerProcess, record_figures: RecordFigures
) -> None:
    """T29. SIGSTOP under load: no client is dropped, whether it sends or is silent, and the late acks are right."""
    server = server_on_both_loops
    account = Account()
    idle = [Peer(server.port) for _ in range(40)]
    load = Load(account, server.port, 8)
    load.wait_for_acks()
    server.signal(signal.SIGSTOP)
    time.sleep(STOPPED_S)  # the fault
    server.signal(signal.SIGCONT)
    continued = time.monotonic()
    load.wait_for_acks()
    recovered_s = time.monotonic() - continued
    assert [peer.ask(b"PING\n")["pong"] for peer in idle] == [True] * 40
    assert server.ask("STATS")["connections"] == 49
    load.stop()
    load.finish()
    for peer in idle:
        peer.close()
    assert account.errors == {}
    assert account.acked.keys() == account.sent.keys()
    verdict = account.verify(server)
    assert "Traceback" not in server.log
    record_figures("SIGSTOP under load", **verdict.figures, stopped_s=STOPPED_S, recovery_s=recovered_s)


def test_pauses_kills_and_resets_in_any_order_lose_nothing(
    server: ServerProcess, moments: random.Random, record_figures: RecordFigures
) -> None:
    """T29 with T1: whatever happens at whatever moment, an acked event is stored exactly once."""
    account = Account()
    clients: list[LoadClient] = []
    done = {"pause": 0, "kill": 0, "reset": 0, "stop": 0}
    for number in range(NEMESIS_ROUNDS * len(done)):
        clients = [client for client in clients if client.is_alive()]
        fresh = Load(account, server.port, 8 - len(clients), f"r{number}c")
        clients += fresh.clients
        fresh.wait_for_acks()
        time.sleep(moments.uniform(0.005, 0.2))  # the moment of the fault, not a wait for anything
        # Each kind equally often, in random order.
        fault = moments.choice([name for name, count in done.items() if count == min(done.values())])
        done[fault] += 1
        match fault:
            case "pause":
                server.signal(signal.SIGSTOP)
                time.sleep(moments.uniform(0.05, 0.5))
                server.signal(signal.SIGCONT)
            case "kill":
                server.kill()
                server.restart()
            case "stop":
                assert server.stop() == 0
                server.restart()
            case _:
                for i in range(20):
                    name = f"reset{number}-{i}"
                    account.sent[name] = event(name, payload=f'{{"n":"{name}"}}')
                    with Peer(server.port) as peer:
                        peer.send(account.sent[name])
                        peer.reset()
    for client in clients:
        client.stop()
    for client in clients:
        client.finish()
    verdict = account.verify_and_stop(server)
    record_figures("pauses, kills, stops and resets", rounds=sum(done.values()), **verdict.figures, **done)
