"""A defect of ours in the delivery: the readers still get everything, and no ack is harmed."""

from __future__ import annotations

import pytest

from tests.harness.account import Account
from tests.harness.changes import Change, encoding_dies, publishing_dies, slices_die
from tests.harness.load_client import Load
from tests.harness.reading import Reading, total, verify
from tests.harness.record import RecordFigures
from tests.harness.server_process import StartServer


@pytest.mark.parametrize("defect", [publishing_dies, encoding_dies], ids=["publishing", "encoding"])
def test_a_defect_in_publishing_costs_nobody_an_event(
    start_server: StartServer, defect: Change, record_figures: RecordFigures
) -> None:
    """R22: all readers fall behind, and read from the store what could not be published."""
    server = start_server(changes=[defect])
    accounts = [Account("app.a"), Account("app.b")]
    wants = {"*": ("app.a", "app.b"), "*.b": ("app.b",), "app.a": ("app.a",)}
    readings = [Reading(server.port, f"{patterns} BEAT 1", accounts) for patterns in wants for _ in range(2)]
    for reading in readings:
        reading.wait_for_line("caught_up")
    loads = [Load(account, server.port, 1, account.topic, in_flight=10) for account in accounts]
    for load in loads:
        load.wait_for_acks(300)
        load.stop()
        load.finish()
    last = int(server.ask("EVENTS * 1")["seq"])
    verdicts = []
    for reading in readings:
        reading.wait_for(last)
        topics = wants[reading.arguments.split()[0]]
        verdicts.append(verify(reading, accounts, lambda topic, topics=topics: topic in topics))  # type: ignore[misc]
        reading.close()
    server.wait_for_log("RuntimeError: a defect")
    assert server.ask("HEALTH")["health"] == "healthy"
    for account in accounts:
        account.verify(server)
    assert server.stop() == 0
    record_figures(f"a defect in {defect.__name__}", **total(verdicts))


def test_a_defect_in_catching_up_ends_that_subscription_alone(start_server: StartServer) -> None:
    """R22: its reader is told a position to resume from, and the other readers are not affected."""
    server = start_server(changes=[slices_die])
    account = Account()
    account.send(server.port, "e", 500)
    others = [Reading(server.port, f"* AFTER {after}", [account]) for after in (0, 250, 500)]
    unlucky = Reading(server.port, "POISON * AFTER 100", [account])
    error = unlucky.wait_for_line("error")
    assert (error["code"], error["detail"], error["seq"]) == ("storage", "a defect: RuntimeError", 100)
    account.send(server.port, "f", 100)
    for reading in others:
        reading.wait_for(600)
        verify(reading, [account])
    unlucky.peer.send(b"PING\n")
    unlucky.wait_for_line("ok")
    for reading in [*others, unlucky]:
        reading.close()
    server.wait_for_log("RuntimeError: a defect in catching up")
    assert server.log.count("RuntimeError: a defect in catching up") == 1
    assert server.stop() == 0
