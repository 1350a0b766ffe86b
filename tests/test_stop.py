"""Stopping a server whose queue is full."""

from __future__ import annotations

import pytest

from tests.harness.changes import short_turns, slow_dict_engine
from tests.harness.polling import wait_until
from tests.harness.server_process import StartServer
from tests.harness.wire import Peer, event

pytestmark = pytest.mark.engines

TURN = 50
COUNT = 4 * TURN
"""The number of events, few enough to fit into one read."""


def test_lines_that_wait_for_room_in_the_queue_are_stored(start_server: StartServer) -> None:
    """One read brings more than the queue takes. The client never ends, and is given up before there is room."""
    server = start_server(
        "--queue-events", "10", "--drain-timeout", "0.1", changes=[short_turns, slow_dict_engine]
    )  # fmt: skip
    with Peer(server.silent_port) as peer:
        peer.send(b"".join(event(f"e{number}") for number in range(COUNT)))
        wait_until(lambda: server.ask("STATS")["received"] >= TURN)
        code = server.stop()

    assert code == 0
    assert "1 connections did not end in time" in server.log
    assert f"stopped: {COUNT} events in memory" in server.log
