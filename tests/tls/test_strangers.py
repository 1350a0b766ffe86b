"""Strangers at a TLS port: silent, slow, or busy making it work. None of them harms a known client."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT, changes, identities, key_updates
from tests.harness.background import in_background
from tests.harness.certificates import Authority
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import StartServer
from tests.harness.tls_peer import TlsPeer
from tests.harness.wire import Peer, event

PLACE_BYTES = 64 * 1024
"""The memory that one connection's place may cost."""

FLOODERS = 3

FLOODER = """
import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
while True:
    try:
        with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5, ("127.0.0.2", 0)) as plain:
            context.wrap_socket(plain).close()
    except OSError:
        pass
"""


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("needs 4096 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("addresses", [1, 20])
@pytest.mark.usefixtures("many_descriptors")
def test_silent_strangers_keep_nobody_out(
    start_tls: StartServer, authority: Authority, addresses: int, record_figures: RecordFigures
) -> None:
    server = start_tls()
    rss_before, limit = server.rss_bytes, 960
    context = authority.trusting()
    waits_s: list[float] = []
    most = [0, 0]
    with contextlib.ExitStack() as strangers:
        for number in range(3000):
            stranger = strangers.enter_context(socket.socket())
            stranger.bind((f"127.0.1.{number % addresses + 1}", 0))
            stranger.connect(("127.0.0.1", server.tls_port))
            if number % 150 == 0:
                started = time.monotonic()
                with TlsPeer(server.tls_port, context) as peer:
                    assert peer.ask(event(f"e-{number}"))["status"] == "stored"
                    most = [max(most[0], peer.ask(b"STATS\n")["connections"]), max(most[1], server.descriptors)]
                waits_s.append(time.monotonic() - started)
        stats = server.ask("STATS")
    assert stats["connections_refused"] == 0
    assert stats["evicted"] > 2000
    assert most[0] <= 64 + 2
    assert most[1] <= limit
    assert server.rss_bytes - rss_before <= limit * PLACE_BYTES
    record_figures(
        f"silent strangers from {addresses}", true_clients=len(waits_s), slowest_ms=round(max(waits_s) * 1000),
    )  # fmt: skip


def test_a_byte_now_and_then_extends_no_deadline(start_tls: StartServer) -> None:
    server = start_tls("--auth-timeout", "1")
    stop = threading.Event()
    with socket.create_connection(("127.0.0.1", server.tls_port)) as slow:

        def trickle() -> None:
            with contextlib.suppress(OSError):
                slow.sendall(b"\x16\x03\x01\x02\x00")
                while not stop.wait(0.1):
                    slow.sendall(b"\x01")

        with in_background(trickle):
            wait_until(lambda: server.ask("STATS")["tls_handshakes"] == {"timed_out": 1})
            stop.set()
    wait_until(lambda: server.ask("STATS")["connections"] == 1)


def _half_a_hello(context: ssl.SSLContext) -> bytes:
    said = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), said, server_hostname="localhost").do_handshake()
    hello = said.read()
    return hello[: len(hello) // 2]


@pytest.mark.usefixtures("many_descriptors")
def test_as_many_strangers_as_there_are_places_cost_little_and_go_in_time(
    start_tls: StartServer, authority: Authority, record_figures: RecordFigures, tmp_path: Path
) -> None:
    """A quarter of each kind: half a ClientHello, a kibibyte without an end, and floods of PING and of AUTH whose
    replies are never read. Some of the first strangers go on to send a byte now and then."""
    places = 960
    mine, stanza = identities.with_token("mine", publish=["*"], read=["*"], may=["monitor"])
    known = identities.write(tmp_path / "known", stanza)
    server = start_tls(
        "--anonymous", "none", "--identities", str(known), "--auth-timeout", "2", "--max-pending", str(places),
        "--address-connections", str(places), "--max-connections", str(places + 64),
    )  # fmt: skip
    rss_before, most_rss = server.rss_bytes, 0
    hello, stop = _half_a_hello(authority.trusting()), threading.Event()
    with contextlib.ExitStack() as strangers:
        first: list[socket.socket] = []
        for number in range(places):
            stranger = strangers.enter_context(socket.socket())
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stranger.bind((f"127.0.1.{number % 8 + 1}", 0))
            kind = number % 4
            stranger.connect(("127.0.0.1", server.tls_port if kind == 0 else server.port))
            stranger.setblocking(False)
            first.append(stranger)
            with contextlib.suppress(OSError):  # the server has already ended it
                stranger.send((hello, b"x" * 1024, b"PING\n" * 10_000, b"AUTH x\n" * 10_000)[kind])
        started = time.monotonic()
        with Peer(server.port) as peer:
            assert peer.ask(identities.auth(mine))["status"] == "ok"

            def trickle() -> None:
                while not stop.wait(0.5):
                    for one in first[:40]:
                        with contextlib.suppress(OSError):
                            one.send(b"x")

            with in_background(trickle):
                while peer.ask(b"STATS\n")["connections"] > 1:
                    most_rss = max(most_rss, server.rss_bytes)
                    assert time.monotonic() - started < 30
                    time.sleep(0.05)
                stop.set()
            gone_s = time.monotonic() - started
    assert most_rss - rss_before <= 40 << 20
    record_figures(
        "strangers of all kinds", places=places, gone_after_s=round(gone_s, 1),
        rss_mib=round((most_rss - rss_before) / (1 << 20), 1),
    )  # fmt: skip


def test_a_flood_of_handshakes_leaves_half_of_the_loop_to_who_is_known(
    start_tls: StartServer, record_figures: RecordFigures
) -> None:
    """Each step of a handshake takes long, so that the flood always has another one waiting."""
    server = start_tls(changes=[changes.slow_handshakes])
    flooders = [subprocess.Popen([sys.executable, "-c", FLOODER, str(server.tls_port)]) for _ in range(FLOODERS)]
    try:
        wait_until(lambda: server.ask("STATS")["tls_handshakes"].get("ok", 0) > 5)
        with Peer(server.port) as known:
            before = known.ask(b"STATS\n")
            for number in range(100):
                assert known.ask(event(f"e-{number}"))["status"] == "stored"
            after = known.ask(b"STATS\n")
    finally:
        for one in flooders:
            one.send_signal(signal.SIGKILL)
            one.wait()
    took_s = after["uptime_s"] - before["uptime_s"]
    handshakes = after["tls_handshakes"]["ok"] - before["tls_handshakes"]["ok"]
    steps = 2 * handshakes - FLOODERS  # two for each, but the first ones may have been taken before
    assert (steps - 1) * changes.HANDSHAKE_STEP_S <= took_s / 2
    record_figures("flood of handshakes", handshakes=handshakes, took_s=took_s)


@pytest.mark.skipif(not key_updates.library(), reason="needs OpenSSL's library")
@pytest.mark.parametrize("kind", [key_updates.REQUESTED, key_updates.NOT_REQUESTED])
@pytest.mark.parametrize("port", ["TLS", "silent TLS"])
def test_who_asks_for_new_keys_for_ever_and_reads_nothing_is_dropped(
    start_tls: StartServer, port: str, kind: int
) -> None:
    server = start_tls("--auth-timeout", "60", changes=[changes.quick_own_answers])
    rss_before = server.rss_bytes
    command = [sys.executable, "-m", "tests.harness.key_updates", str(server.port_of(port)), "3000000", str(kind)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as client:
        try:
            assert client.stdout
            assert client.stdout.readline() == b"connected\n"
            done = int(client.stdout.readline() or 0)
        finally:
            client.kill()
    assert done < 3_000_000
    wait_until(lambda: server.ask("STATS")["connections"] == 1)
    assert server.rss_bytes - rss_before < 32 << 20
