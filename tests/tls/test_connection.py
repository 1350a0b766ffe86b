"""One connection over TLS, step by step: how it begins, how it ends, and what is dropped."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time

import pytest

from tests.harness import changes, wire
from tests.harness.certificates import Authority, Pair
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.tls_peer import TlsPeer, exchange
from tests.harness.wire import Peer, event, events

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("end", ["close_notify", "FIN", "both", "QUIT"])
def test_every_ack_comes_however_the_client_ends(
    tls_server: ServerProcess, authority: Authority, version: ssl.TLSVersion, end: str
) -> None:
    with TlsPeer(tls_server.tls_port, authority.trusting(version=version)) as peer:
        peer.send(b"".join(events("e", 5000)) + (b"QUIT\n" if end == "QUIT" else b""))
        if end in ("close_notify", "both"):
            peer.close_notify()
        if end in ("FIN", "both"):
            peer.fin()
        replies = peer.rest()
        assert peer.closed_notify
    bye = [{"status": "ok", "bye": True}] if end == "QUIT" else []
    assert [reply.get("event_id") for reply in replies[:5000]] == [f"e-{i}" for i in range(5000)]
    assert replies[5000:] == bye


def test_a_silent_port_ends_by_a_fin_alone(tls_server: ServerProcess, authority: Authority) -> None:
    """rsyslog looks for the end at the socket, where an alert before the FIN would hide it."""
    with TlsPeer(tls_server.tls_silent_port, authority.trusting()) as peer:
        peer.send(event("e"))
        wait_until(lambda: tls_server.ask("STATS")["stored_total"] == 1)
        tls_server.process.terminate()
        assert peer.raw_rest() == b""
        assert not peer.closed_notify
        peer.send(event("late"))
        peer.close_notify()
        peer.fin()
    assert tls_server.wait() == 0
    tls_server.restart()
    assert set(tls_server.stored("t")) == {"e", "late"}


def test_nothing_is_written_to_a_silent_client(tls_server: ServerProcess, authority: Authority) -> None:
    """Not even a session ticket, which would stay unread, so that the client's close would be a reset."""
    with TlsPeer(tls_server.tls_silent_port, authority.trusting(version=ssl.TLSVersion.TLSv1_3)) as peer:
        peer.send(b"".join(events("e", 100)) + b"garbage\nPING\n")
        wait_until(lambda: tls_server.ask("STATS")["received"] == 102)
        peer.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.socket.recv(1)


def test_an_unfinished_line_counts_only_at_an_orderly_end(tls_server: ServerProcess, authority: Authority) -> None:
    whole = event("whole").rstrip(b"\n")
    assert exchange(tls_server.tls_port, authority.trusting(), whole)[0]["status"] == "stored"

    with TlsPeer(tls_server.tls_port, authority.trusting()) as peer:
        peer.send(event("before") + event("cut")[:-2])
        peer.fin()
        before, cut = peer.rest()
    assert before["status"] == "stored"
    assert (cut["status"], cut["code"]) == ("error", "unfinished_line")
    assert cut["detail"].startswith("line 2 may be cut")
    tls_server.wait_for_log("dropped: line 2 may be cut")
    assert re.search(r"TLS port: 127\.0\.0\.1:\d+: dropped", tls_server.log)

    with TlsPeer(tls_server.tls_silent_port, authority.trusting()) as peer:
        peer.send(event("silent") + event("cut")[:-2])
        peer.fin()
        assert peer.raw_rest() == b""
    wait_until(lambda: set(tls_server.stored("t")) == {"whole", "before", "silent"})
    assert tls_server.ask("STATS")["errors"] == 2


@pytest.mark.parametrize("first", [b"PING\n", b"GET / HTTP/1.1\r\n\r\n", event("plain"), b"\0"])
def test_plain_text_is_told_that_this_port_speaks_tls(tls_server: ServerProcess, first: bytes) -> None:
    with Peer(tls_server.tls_port) as peer:
        peer.send(first + b"more\n" * 10_000)
        assert peer.rest() == [{"status": "error", "code": "tls_required", "detail": "this port speaks TLS"}]
    with Peer(tls_server.tls_silent_port) as peer:
        peer.send(first)
        assert peer.raw_rest() == b""
    wait_until(lambda: tls_server.ask("STATS")["tls_handshakes"] == {"not_tls": 2})
    tls_server.wait_for_log("TLS port: TLS handshake with 127.0.0.1 failed: it does not speak TLS")
    assert tls_server.ask("STATS")["stored_total"] == 0


def test_tls_on_the_plain_port_is_an_alert(tls_server: ServerProcess, authority: Authority) -> None:
    with pytest.raises(ssl.SSLError, match="TLSV1_ALERT_PROTOCOL_VERSION"):
        TlsPeer(tls_server.port, authority.trusting())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_older_versions_are_refused(tls_server: ServerProcess, authority: Authority) -> None:
    context = authority.trusting()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        TlsPeer(tls_server.tls_port, context)
    tls_server.wait_for_log("TLS handshake with 127.0.0.1 failed: unsupported protocol")


def test_a_connection_is_counted_before_its_handshake(start_tls: StartServer, authority: Authority) -> None:
    server = start_tls("--max-connections", "3")
    with socket.create_connection(("127.0.0.1", server.tls_port)) as stranger:
        wait_until(lambda: server.ask("STATS")["connections"] == 2)  # including the connection that asks
        stranger.sendall(b"\x16\x03\x01")
        with socket.create_connection(("127.0.0.1", server.tls_port)), Peer(server.port) as known:
            assert known.ask(b"PING\n")["pong"]
            with pytest.raises((ssl.SSLError, ConnectionError)):
                TlsPeer(server.tls_port, authority.trusting())
        wait_until(lambda: server.ask("STATS")["connections"] == 2)
    wait_until(lambda: server.ask("STATS")["connections"] == 1)
    stats = server.ask("STATS")
    assert stats["connections_refused"] == 1
    assert stats["tls_handshakes"] == {"gone": 2}


def test_a_handshake_has_a_deadline(start_tls: StartServer, authority: Authority) -> None:
    server = start_tls("--auth-timeout", "1")
    with socket.create_connection(("127.0.0.1", server.tls_port)), Peer(server.tls_port) as half:
        half.send(b"\x16\x03\x01\x02\x00")
        started = time.monotonic()
        wait_until(lambda: server.ask("STATS")["tls_handshakes"] == {"timed_out": 2})
        assert time.monotonic() - started < 10
    with TlsPeer(server.tls_port, authority.trusting()) as peer:
        assert peer.ask(b"PING\n")["pong"]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("started", [False, True])
def test_strangers_do_not_hold_up_the_end(start_tls: StartServer, started: bool, loop: str) -> None:
    server = start_tls("--drain-timeout", "60", loop=loop)
    with socket.create_connection(("127.0.0.1", server.tls_silent_port)) as stranger:
        if started:
            stranger.sendall(b"\x16\x03\x01")
        wait_until(lambda: server.ask("STATS")["connections"] == 2)
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 30, "not the drain timeout"


def test_what_was_read_before_the_stream_broke_is_stored(tls_server: ServerProcess, authority: Authority) -> None:
    with TlsPeer(tls_server.tls_port, authority.trusting()) as peer:
        peer.send(b"".join(events("e", 100)))
        peer.socket.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)  # a record that was never encrypted
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            peer.raw_rest()
    wait_until(lambda: tls_server.ask("STATS")["stored_total"] == 100)
    wait_until(lambda: tls_server.ask("STATS")["connections"] == 1)


def test_a_reset_loses_no_complete_line(tls_server: ServerProcess, authority: Authority) -> None:
    with TlsPeer(tls_server.tls_port, authority.trusting()) as peer:
        peer.send(b"".join(events("e", 100)))
        peer.reply()
        peer.reset()
    wait_until(lambda: tls_server.ask("STATS")["stored_total"] == 100)


def test_a_client_that_does_not_read_is_muted_and_its_events_are_stored(
    start_tls: StartServer, authority: Authority
) -> None:
    server = start_tls("--reply-buffer-bytes", "65536", changes=[changes.impatient])
    with TlsPeer(server.tls_port, authority.trusting(), receive_buffer=4096) as peer:
        sent = events("e", 60_000)
        for start in range(0, len(sent), 1000):
            peer.send(b"".join(sent[start : start + 1000]))
        wait_until(lambda: server.ask("STATS")["stored_total"] == len(sent))
    assert server.ask("STATS")["muted"] == 1


def test_subscriptions_and_large_answers(tls_server: ServerProcess, authority: Authority) -> None:
    wire.exchange(tls_server.port, b"".join(events("e", 3000)))
    with TlsPeer(tls_server.tls_port, authority.trusting()) as reader:
        reader.send(b"EVENTS t 1000\nSUBSCRIBE t AFTER 0\n")
        assert len(reader.reply()["events"]) == 1000
        assert reader.reply()["status"] == "ok"
        got = [reader.reply() for _ in range(3000)]
        assert [one["event"]["event_id"] for one in got] == [f"e-{i}" for i in range(3000)]
        assert reader.reply()["status"] == "caught_up"
        wire.exchange(tls_server.port, event("new"))
        assert reader.reply()["event"]["event_id"] == "new"


@pytest.mark.parametrize("key", ["ec", "rsa"])
def test_keys_of_both_kinds(start_tls: StartServer, authority: Authority, key: str) -> None:
    server = start_tls(certificate=authority.server(key))
    assert exchange(server.tls_port, authority.trusting(), b"PING\n")[0]["pong"]


def test_a_name_and_a_ca_are_checked_by_the_client(tls_server: ServerProcess, foreign: Authority, pair: Pair) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        TlsPeer(tls_server.tls_port, foreign.trusting())
    wait_until(lambda: tls_server.ask("STATS")["tls_handshakes"] == {"failed": 1})
