"""Readers that vanish silently: a cut link, a client that is killed after its half of the close, resets."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.harness.account import Account
from tests.harness.changes import quick_keepalive, quick_silence
from tests.harness.network import SERVER_ADDRESS, Network
from tests.harness.polling import wait_until
from tests.harness.reading import Reading, verify
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import READER_RESETS, SLACK
from tests.harness.wire import Peer, event, exchange

STAYS_HALF_CLOSED = """
import socket, sys, time
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(sys.argv[2].encode() + b"\\n")
connection.shutdown(socket.SHUT_WR)
connection.recv(1)
print(flush=True)
time.sleep(600)
"""


@pytest.mark.root
def test_a_reader_behind_a_cut_link_gives_its_place_back(
    network: Network, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """R11: deliveries and heartbeats are in flight to it, which the kernel retransmits for a quarter of an hour. A
    reader that is alive but does not read stays. (Here after 2 s, instead of 2 min.)"""
    changes = [quick_keepalive, quick_silence]
    server = start_server("--host", "0.0.0.0", "--anonymous", "all", prefix=network.on_server(), changes=changes)
    account = Account()
    with network.inside(network.client):
        vanishing = [Peer(server.port, host=SERVER_ADDRESS) for _ in range(3)]
    for peer, options in zip(vanishing, ("BEAT 1", "BEAT 0", "BEAT 0 AS me"), strict=True):
        peer.send(f"SUBSCRIBE * {options}\n".encode())
        assert peer.replies(2)[1]["status"] == "caught_up"
    with network.inside(network.server):
        account.send(server.port, "e", 3000, f'{{"x":"{"x" * 2000}"}}')
        reading = Reading(server.port, "* BEAT 1", [account])
        reading.wait_for_line("caught_up")
        stalled = Peer(server.port, receive_buffer=4096)
        stalled.send(b"SUBSCRIBE * AFTER 0\n")
        for peer in vanishing:
            while peer.reply().get("event", {}).get("seq") != 3000:
                pass
        network.cut()
        cut = time.monotonic()
        exchange(server.port, account.line("on its way"))
        wait_until(lambda: server.ask("STATS")["subscribers"] == 2, SLACK * 10)
        noticed_s = time.monotonic() - cut
        reading.wait_for(3001)
        verify(reading, [account])
        wait_until(lambda: time.monotonic() - cut > 5)  # longer than a vanished reader is kept
        states = {one["state"] for one in server.ask("SUBSCRIBERS")["subscribers"]}
        assert states == {"live", "stalled"}
        network.mend()
        reading.close()
        stalled.close()
    for peer in vanishing:
        peer.close()
    assert "Traceback" not in server.log
    record_figures("reader behind a cut link", noticed_s=noticed_s)


@pytest.mark.parametrize("command", ["SUBSCRIBE * BEAT 1", "SUBSCRIBE nothing BEAT 1", "SUBSCRIBE * AS me BEAT 1"])
def test_a_client_that_is_killed_behind_its_half_close_is_noticed(server: ServerProcess, command: str) -> None:
    """R11: the server no longer reads from it, so it misses the reset too. A delivery or a heartbeat shows it."""
    with subprocess.Popen(
        [sys.executable, "-c", STAYS_HALF_CLOSED, str(server.port), command], stdout=subprocess.PIPE
    ) as client:
        assert client.stdout
        client.stdout.readline()
        assert server.ask("STATS")["connections"] == 2
        client.kill()
    wait_until(lambda: server.ask("STATS")["connections"] == 1)
    assert server.ask("STATS")["subscribers"] == 0


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_thousand_resets_leave_nothing(start_server: StartServer, loop: str) -> None:
    """R11: in the middle of a line that is being delivered."""
    server = start_server(loop=loop)
    account = Account()
    account.send(server.port, "e", 200, f'{{"x":"{"x" * 5000}"}}')
    reading = Reading(server.port, "* AFTER 0", [account])
    reading.wait_for_line("caught_up")
    descriptors = server.descriptors
    for number in range(READER_RESETS):
        peer = Peer(server.port, receive_buffer=4096)
        peer.send(b"SUBSCRIBE * AFTER 0%b\n" % (b" AS n%d" % (number % 3) if number % 2 else b""))
        peer.socket.recv(100 + number)
        peer.reset()
        if number % 50 == 0:
            exchange(server.port, account.line(f"more{number}"))
    exchange(server.port, account.line("last"))
    reading.wait_for(int(server.ask("EVENTS * 1")["seq"]))
    verify(reading, [account])
    wait_until(lambda: server.ask("STATS")["subscribers"] == 1)
    wait_until(lambda: server.descriptors <= descriptors)
    reading.close()
    assert exchange(server.port, event("and on"))[0]["status"] == "stored"
    assert "Traceback" not in server.log
