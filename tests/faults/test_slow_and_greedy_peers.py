"""Peers that do not read, do not finish a line, or send endlessly; polite clients must not notice them.

The waits of the polite clients are compared with those of an unharmed server's clients at the same moment.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import time

import pytest

from aggregator.server.peer import IN_FLIGHT_DIVISOR
from aggregator.server.peer_log import PEER_LOG_INTERVAL_S
from tests.harness.account import Account
from tests.harness.background import in_background
from tests.harness.changes import patient
from tests.harness.flooder import Flooder
from tests.harness.polite_client import FLOOR_S, p99, polite_clients, wait_for_acks
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import StartServer
from tests.harness.sizes import POLITE_S, SLACK, UNREAD_EVENTS
from tests.harness.wire import Peer, event, events, exchange

MIB = 1 << 20


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_client_that_never_reads_is_muted_and_nobody_else_notices(
    start_server: StartServer, loop: str, record_figures: RecordFigures
) -> None:
    """T30. It is muted 5 s after its reply buffer became full, and not dropped: all its events are stored."""
    server, unharmed = start_server(loop=loop), start_server(loop=loop)
    account = Account()
    for number in range(66):  # the newest 65,536 keys are kept in memory, which is not what this test measures
        exchange(server.port, b"".join(events(f"early-{number}", 1000, "early")))
    with polite_clients(account, server.port, 8, "before") as polite:
        wait_for_acks(polite, POLITE_S)
    memory = server.rss_bytes
    sent_at = 0.0

    def send() -> None:
        nonlocal sent_at
        data = memoryview(b"".join(events("unread", UNREAD_EVENTS, "unread")))
        while data:
            data = data[silent.socket.send(data) :]
            sent_at = time.monotonic()

    with Peer(server.port, receive_buffer=4096) as silent:
        sending = in_background(send)
        # Until then it is a flooder, which another test measures.
        wait_until(lambda: sent_at and time.monotonic() - sent_at > 1, 60)
        stalled_at = sent_at
        assert server.ask("STATS")["muted"] == 0, "not at once"
        with (
            polite_clients(account, server.port, 8) as polite,
            polite_clients(Account(), unharmed.port, 8) as others,
        ):
            wait_until(lambda: server.ask("STATS")["muted"] == 1, SLACK * 5)
            muted_after = time.monotonic() - stalled_at
            held = server.rss_bytes - memory
            waited, control = p99(polite), p99(others)
        sending.finish()  # all its events are read
        silent.half_close()
        wait_until(lambda: server.ask("TOPICS")["topics"][-1]["stored"] == UNREAD_EVENTS, 60)
    verdict = account.verify(server)
    record_figures(
        f"silent reader ({loop})", **verdict.figures, unread_events=UNREAD_EVENTS,
        muted_after_s=muted_after, held_bytes=held, control_p99_s=control, polite_p99_s=waited,
    )  # fmt: skip

    assert muted_after < SLACK * 5
    assert held < 32 * MIB, "its replies, its share of the queue, and the store's page cache"
    assert waited < 2 * control + FLOOR_S
    server.wait_for_log("its events are still stored. The silent port is for such senders")
    assert server.log.count("does not read its replies: muted") == 1
    assert server.ask("STATS")["errors"] == 0
    assert "Traceback" not in server.log


def test_half_sent_lines_are_ended_and_nobody_else_notices(
    start_server: StartServer, record_figures: RecordFigures
) -> None:
    """T31. 500 peers that send a byte a second and never an LF, on both ports. A trickle of bytes does not extend the
    deadline: the line has to end. Clients that send nothing, or whole lines, stay."""
    timeout_s = 4
    server, unharmed = start_server("--line-timeout", f"{timeout_s}", changes=[patient]), start_server()
    account = Account()
    ended: dict[Peer, tuple[float, bytes]] = {}
    with (
        Peer(server.port) as idle,
        Peer(server.silent_port) as idle_shipper,
        Peer(server.port) as steady,
        polite_clients(account, server.port, 8) as polite,
        polite_clients(Account(), unharmed.port, 8) as others,
    ):
        slow = {Peer(port): 0.0 for port in [server.port, server.silent_port] * 250}
        with selectors.DefaultSelector() as selector:
            for peer in slow:
                slow[peer] = time.monotonic()
                peer.send(b'{"topic":"slow"')
                selector.register(peer.socket, selectors.EVENT_READ, peer)
            next_byte = time.monotonic()
            while len(ended) < len(slow):
                for key, _ in selector.select(0.05):
                    at = time.monotonic()
                    selector.unregister(key.fileobj)
                    ended[key.data] = at - slow[key.data], _rest(key.data)
                if time.monotonic() > next_byte:
                    next_byte += 1
                    assert steady.ask(event(f"steady{next_byte}", "whole"))["status"] == "stored"
                    for peer in slow.keys() - ended.keys():
                        _drip(peer)
                assert max(time.monotonic() - begun for begun in slow.values()) < SLACK * (timeout_s + 2)
        assert idle.ask(b"PING\n")["pong"] is True
        idle_shipper.send(event("shipped", "whole"))
        wait_until(lambda: idle.ask(b"EVENT whole shipped\n")["event"])
        wait_for_acks(polite + others, POLITE_S)
    ages = [age for age, _ in ended.values()]
    waited, control = p99(polite), p99(others)
    verdict = account.verify(server)
    record_figures(
        "half-sent lines", rounds=len(ages), **verdict.figures,
        earliest_s=min(ages), latest_s=max(ages), control_p99_s=control, polite_p99_s=waited,
    )  # fmt: skip

    detail = "line 1 is still unfinished after 4 s; send it again"
    reply = b'{"status":"error","code":"unfinished_line","detail":"%s"}\n' % detail.encode()
    assert {said for _, said in ended.values()} == {reply, b""}
    assert sum(said == reply for _, said in ended.values()) == 250, "the silent port writes nothing"
    assert timeout_s - 0.5 < min(ages) <= max(ages) < SLACK * (timeout_s + 2)
    assert waited < 2 * control + FLOOR_S
    server.wait_for_log(" within 4 s: closed")
    logged = server.log.count(" within 4 s: closed")
    each_port = 1 + max(ages) / PEER_LOG_INTERVAL_S
    assert logged <= 2 * each_port, "the log is rate-limited"
    assert server.ask("STATS")["errors"] == 500
    wait_until(lambda: server.ask("STATS")["connections"] == 1)


def _drip(peer: Peer) -> None:
    with contextlib.suppress(OSError):  # the server has just closed it
        peer.send(b"x")


def _rest(peer: Peer) -> bytes:
    try:
        with peer:
            return peer.raw_rest()
    except ConnectionResetError:  # on the silent port there is nothing to read
        return b""


def test_a_line_may_take_its_time_if_it_ends(start_server: StartServer) -> None:
    """T31, the other side: any number of slow lines, each of which ends within its time."""
    server = start_server("--line-timeout", "6")
    with Peer(server.port) as peer:
        for number in range(4):
            line = event(f"e{number}")
            for start in range(0, len(line), 20):
                peer.send(line[start : start + 20])
                time.sleep(2.2 / (len(line) / 20))  # the slowness that is tested
            assert peer.reply()["status"] == "stored"


def test_a_stopped_server_blames_nobody_for_its_own_pause(start_server: StartServer) -> None:
    """T31: the rest of the line arrives while the server cannot read it."""
    server = start_server("--line-timeout", "4")
    with Peer(server.port) as peer:
        peer.ask(b"PING\n")
        peer.send(event("e")[:20])
        time.sleep(1.2)  # the server has looked at it once
        server.signal(signal.SIGSTOP)
        time.sleep(6)  # the pause that is tested
        peer.send(event("e")[20:])
        server.signal(signal.SIGCONT)
        assert peer.reply()["status"] == "stored"


def test_a_flooder_does_not_hold_up_the_polite(start_server: StartServer, record_figures: RecordFigures) -> None:
    """T38. A flooder keeps 20,000 events in flight; 20 polite clients wait for each ack.

    The server takes no more of the flooder's events than a quarter of the queue, which is its share, and what it reads
    at once. So the polite clients wait not much longer than those of an unharmed server: an event waits for the commit
    before its own, and for its own. On a quiet machine they wait 50 to 110 ms.
    """
    server, unharmed = start_server(), start_server()
    account = Account()
    with Flooder(server.port, "f", POLITE_S + 1) as flooder:
        wait_until(lambda: server.ask("TOPICS")["total"])
        with (
            polite_clients(account, server.port, 20) as polite,
            polite_clients(Account(), unharmed.port, 20) as others,
        ):
            taken = 0
            ends = time.monotonic() + POLITE_S
            while time.monotonic() < ends:
                taken = max(taken, *(one["unanswered"] for one in server.ask("CLIENTS")["clients"]))
                time.sleep(0.01)  # between looks
            wait_for_acks(polite + others, 0)
            share = server.ask("STATS")["queue_limit"] // IN_FLIGHT_DIVISOR
        sent, answered = flooder.end()
    flooded = server.ask("TOPICS")["topics"][0]["stored"]
    waited, control = p99(polite), p99(others)
    verdict = account.verify(server)
    record_figures(
        "flooder", **verdict.figures, flood_events=sent, taken=taken,
        control_p99_s=control, polite_p99_s=waited,
    )  # fmt: skip

    assert flooded == sent == answered > 5_000
    assert taken < 2 * share
    assert waited < 3 * control + FLOOR_S
