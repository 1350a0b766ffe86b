"""The server itself stands still for a while, or is killed, in any mixture with peers that are reset."""

from __future__ import annotations

import random
import signal
import time

from tests.checker import Ledger, Sender, check_database
from tests.faults.record import RecordFigures
from tests.faults.sizes import NEMESIS_ROUNDS, STOPPED_S
from tests.server_process import ServerProcess, wait_until
from tests.wire import Peer, event


def test_a_stopped_server_goes_on_where_it_was(
    server_on_both_loops: ServerProcess, record_figures: RecordFigures
) -> None:
    """T29. SIGSTOP under load: nobody is dropped, neither who sends nor who is silent, and the late acks are right."""
    server = server_on_both_loops
    ledger = Ledger()
    idle = [Peer(server.port) for _ in range(40)]
    senders = [Sender(ledger, server.port, f"c{number}") for number in range(8)]
    wait_until(lambda: all(sender.acks for sender in senders))
    server.signal(signal.SIGSTOP)
    time.sleep(STOPPED_S)  # the fault
    acks = [sender.acks for sender in senders]
    server.signal(signal.SIGCONT)
    continued = time.monotonic()
    wait_until(lambda: all(sender.acks > before for sender, before in zip(senders, acks, strict=True)))
    recovered_s = time.monotonic() - continued
    assert [peer.ask(b"PING\n")["pong"] for peer in idle] == [True] * 40
    assert server.ask("STATS")["connections"] == 49
    for sender in senders:
        sender.stop()
    for sender in senders:
        sender.join(30)
    for peer in idle:
        peer.close()
    assert ledger.errors == {}
    assert ledger.acked.keys() == ledger.sent.keys()
    verdict = ledger.verify(server)
    assert "Traceback" not in server.log
    record_figures("SIGSTOP under load", **verdict.figures, stopped_s=STOPPED_S, recovery_s=recovered_s)


def test_pauses_kills_and_resets_in_any_order_lose_nothing(
    server: ServerProcess, moments: random.Random, record_figures: RecordFigures
) -> None:
    """T29 with T1: whatever happens to it when, acked is stored, once."""
    ledger = Ledger()
    senders: list[Sender] = []
    done = {"pause": 0, "kill": 0, "reset": 0, "stop": 0}
    for number in range(NEMESIS_ROUNDS * len(done)):
        senders = [sender for sender in senders if sender.is_alive()]
        fresh = [Sender(ledger, server.port, f"r{number}c{i}") for i in range(8 - len(senders))]
        senders += fresh
        wait_until(lambda fresh=fresh: all(sender.acks for sender in fresh))  # type: ignore[misc]
        time.sleep(moments.uniform(0.005, 0.2))  # the moment of the fault, not a wait for anything
        # Each kind equally often, in any order.
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
                    ledger.sent[name] = event(name, payload=f'{{"n":"{name}"}}')
                    with Peer(server.port) as peer:
                        peer.send(ledger.sent[name])
                        peer.reset()
    for sender in senders:
        sender.stop()
    for sender in senders:
        sender.join(30)
    verdict = ledger.verify(server)
    assert server.stop() == 0
    check_database(server.db)
    record_figures("pauses, kills, stops and resets", rounds=sum(done.values()), **verdict.figures, **done)
