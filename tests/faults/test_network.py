"""The network fails: it is cut in mid-stream, a peer vanishes silently, or it is much slower than the server."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time

import pytest

from aggregator.server.peer import REPLY_DEADLINE_S
from tests.harness import ROOT
from tests.harness.account import Account
from tests.harness.background import in_background
from tests.harness.changes import quick_keepalive
from tests.harness.network import SERVER_ADDRESS, Network
from tests.harness.polite_client import FLOOR_S, p99, polite_clients, wait_for_acks
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import CUT_S, POLITE_S, SLACK, UNREAD_EVENTS
from tests.harness.wire import Peer, event, events

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture
def far_server(network: Network, start_server: StartServer) -> ServerProcess:
    """A server on the other machine."""
    return start_server("--host", "0.0.0.0", "--anonymous", "all", prefix=network.on_server())


def test_a_cut_link_loses_and_doubles_nothing(
    network: Network, far_server: ServerProcess, record_figures: RecordFigures
) -> None:
    """T36. Our own client sends 3,000 events before, during and after the cut, and resends those without an ack."""
    server = far_server
    account = Account()
    lines = [account.line(f"e-{number}") for number in range(3000)]
    client = subprocess.Popen(
        [*network.on_client(), sys.executable, "-m", "aggregator", "send", "--to", f"{SERVER_ADDRESS}:{server.port}"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert client.stdin
    with network.inside(network.server), client:
        client.stdin.write(b"".join(lines[:1000]))
        client.stdin.flush()
        wait_until(lambda: server.ask("STATS")["stored_total"] == 1000)
        network.cut()
        client.stdin.write(b"".join(lines[1000:2000]))
        client.stdin.flush()
        time.sleep(CUT_S)  # the fault
        assert server.ask("STATS")["stored_total"] == 1000, "it was cut"
        network.mend()
        mended = time.monotonic()
        _, complaints = client.communicate(b"".join(lines[2000:]), timeout=180)
        recovered_s = time.monotonic() - mended

        assert client.returncode == 0, complaints
        assert server.stored("t").keys() == account.sent.keys(), "all of them are acked"
        wait_until(lambda: server.ask("STATS")["connections"] == 1)
        verdict = account.verify(server)
        record_figures("cut link", **verdict.figures, cut_s=CUT_S, recovery_s=recovered_s)


def test_a_peer_that_vanished_is_noticed(
    network: Network, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """T36. Keepalive is 1 + 3 x 1 s instead of 60 + 4 x 15 s. The peer's half-sent line is dropped with it, and no
    other client notices. A peer that is alive but silent stays."""
    server = start_server(
        "--host", "0.0.0.0", "--anonymous", "all", prefix=network.on_server(), changes=[quick_keepalive]
    )
    with network.inside(network.client):
        vanishing = [Peer(port, host=SERVER_ADDRESS) for port in (server.port, server.silent_port)]
    vanishing[0].ask(event("before"))
    vanishing[1].send(event("shipped") + event("half")[:-1])
    with network.inside(network.server), Peer(server.port) as idle:
        wait_until(lambda: server.ask("STATS")["stored_total"] == 2)
        assert server.ask("STATS")["connections"] == 4
        network.cut()
        cut = time.monotonic()
        wait_until(lambda: server.ask("STATS")["connections"] == 2, SLACK * 4)
        noticed_s = time.monotonic() - cut
        record_figures("vanished peer", noticed_s=noticed_s)
        assert 2 < noticed_s < SLACK * 4
        assert idle.ask(b"PING\n")["pong"] is True
        assert server.stored("t").keys() == {"before", "shipped"}
    for peer in vanishing:
        peer.close()
    assert "Traceback" not in server.log


def test_keepalive_is_on_for_every_connection(network: Network, far_server: ServerProcess) -> None:
    """T36. Keepalive with the product's settings: the kernel shows when it will probe the peer."""
    started = time.monotonic()
    with network.inside(network.client):
        peers = [Peer(port, host=SERVER_ADDRESS) for port in (far_server.port, far_server.silent_port)]
    for port in (far_server.port, far_server.silent_port):
        wait_until(lambda port=port: 0 < _probed_in_s(network, port) <= 60)  # type: ignore[misc]
        left_s = _probed_in_s(network, port)
        assert left_s + time.monotonic() - started >= 59, "it began with 60 s, and shows whole seconds"
    for peer in peers:
        peer.close()


def _probed_in_s(network: Network, port: int) -> int:
    """In how many seconds the kernel will probe the client of this port; 0 if it will not."""
    shown = _shown(network, port, "-Htno")
    found = re.search(r"timer:\(keepalive,(?:(\d+)min)?(?:(\d+)sec)?", shown)
    return 60 * int(found[1] or 0) + int(found[2] or 0) if found else 0


def test_a_peer_that_vanished_with_replies_on_their_way_is_noticed(network: Network, far_server: ServerProcess) -> None:
    """T36. Keepalive begins when the kernel stops retransmitting those replies (tcp_retries2): by default after about
    15 minutes, here after three retries.

    A user timeout on the socket would be shorter. But it would also reset a client that merely does not read its
    replies, and the events of such a client count.
    """
    server = far_server
    retries = "net.ipv4.tcp_retries2=3"
    subprocess.run([*network.on_server(), "sysctl", "-qw", retries], check=True)
    with network.inside(network.client):
        peer = Peer(server.port, host=SERVER_ADDRESS)
    peer.ask(event("before"))
    server.signal(signal.SIGSTOP)
    peer.send(event("last"))
    wait_until(lambda: _unread_bytes(network, server.port) == len(event("last")))
    network.cut()
    server.signal(signal.SIGCONT)
    with network.inside(network.server):
        wait_until(lambda: server.ask("STATS")["connections"] == 1, 60)
        assert server.stored("t").keys() == {"before", "last"}, "what was read counts"
    peer.close()
    assert "Traceback" not in server.log


def _unread_bytes(network: Network, port: int) -> int:
    """How many bytes have arrived on the server's machine and have not been read yet."""
    return int(_shown(network, port, "-Htn").split()[0])


def _shown(network: Network, port: int, options: str) -> str:
    """What ``ss`` shows of the connections of a port of the server's."""
    command = [*network.on_server(), "ss", options, "state", "established", f"sport = :{port}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_throttled_reader_holds_up_nobody_and_costs_no_memory(
    network: Network, start_server: StartServer, record_figures: RecordFigures
) -> None:
    """T37. The acks go through a 256 kbit/s link; the other clients are served like those of an unharmed server. A
    client that reads slowly is not muted: in the end it has every reply."""
    server = start_server(
        "--host", "0.0.0.0", "--anonymous", "all", "--reply-buffer-bytes", "65536", prefix=network.on_server()
    )
    unharmed = start_server(prefix=network.on_server())
    # The kernel's buffer for these acks is small, so that the server's buffer is full for longer than REPLY_DEADLINE_S.
    subprocess.run([*network.on_server(), "sysctl", "-qw", "net.ipv4.tcp_wmem=4096 16384 131072"], check=True)
    account = Account()
    count = UNREAD_EVENTS
    with network.inside(network.server):
        with polite_clients(account, server.port, 8, "before") as polite:  # the memory that any client costs
            wait_for_acks(polite, POLITE_S)
        memory = server.rss_bytes
        network.throttle("256kbit")
        with network.inside(network.client):
            far = Peer(server.port, host=SERVER_ADDRESS)
        ids: list[str] = []
        with far:
            sending = in_background(lambda: far.send(b"".join(events("far", count, "far"))))
            # It reads all the time, as fast as replies come: only the link is slow.
            reading = in_background(lambda: ids.extend(far.reply()["event_id"] for _ in range(count)))
            with (
                polite_clients(account, server.port, 8) as polite,
                polite_clients(Account(), unharmed.port, 8) as others,
            ):
                wait_for_acks(polite + others, REPLY_DEADLINE_S + 3)
                held = server.rss_bytes - memory
            waited, control = p99(polite), p99(others)
            muted = server.ask("STATS")["muted"]
            read_while_throttled = len(ids)
            network.unthrottle()
            assert muted == 0
            sending.finish()
            reading.finish()
        verdict = account.verify(server)
        record_figures(
            "throttled acks", **verdict.figures, far_events=count,
            control_p99_s=control, polite_p99_s=waited, held_bytes=held,
        )  # fmt: skip

        assert 0 < read_while_throttled < count, "the link was slow"
        assert ids == [f"far-{number}" for number in range(count)]
        assert held < 32 * MIB
        assert waited < 2 * control + FLOOR_S


def test_an_ipv6_network_counts_as_one_address(network: Network, start_server: StartServer) -> None:
    """The cap for one address counts an IPv6 network as one address, because each host in it has 2^64 addresses."""
    for address in ("fd00:1::1", "fd00:1::2", "fd00:1::3", "fd00:2::1"):
        command = ["ip", "-n", network.server, "address", "add", f"{address}/64", "dev", "lo", "nodad"]
        subprocess.run(command, check=True)
    server = start_server(
        "--host", "fd00:1::1", "--anonymous", "all", "--address-connections", "2", prefix=network.on_server()
    )
    with network.inside(network.server), contextlib.ExitStack() as stack:

        def connect(source: str) -> Peer:
            return stack.enter_context(Peer(server.port, host="fd00:1::1", source=source))

        assert connect("fd00:1::2").ask(b"PING\n")["pong"] is True
        assert connect("fd00:1::3").ask(b"PING\n")["pong"] is True
        assert connect("fd00:1::1").reply()["detail"] == "2 connections from fd00:1::/64 are open; try again later"
        assert connect("fd00:2::1").ask(b"PING\n")["pong"] is True
