"""The Forward port of a real server, in bytes: what is stored and acked, what is not, and how it ends."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import ROOT, wire
from tests.harness.background import in_background
from tests.harness.changes import impatient, patient_with_silence
from tests.harness.forward import ForwardPeer, event_time, forward, pack
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import SLACK
from tests.harness.wire import Peer

HELD_UP_S = 3.0
"""Far below the times measured before the fix, and far above what a busy machine adds."""

ON = ("--forward-port", "0")


@pytest.fixture(params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest, start_server: StartServer) -> ServerProcess:
    """A running server with a Forward port, once on each event loop."""
    return start_server(*ON, loop=request.param)


def payloads(server: ServerProcess, topic: str = "t") -> dict[str, wire.Json]:
    return {event_id: event["payload"] for event_id, event in server.stored(topic).items()}


def test_a_chunk_is_acked_when_it_is_stored(server: ServerProcess) -> None:
    with ForwardPeer(server.port_of("forward")) as peer:
        assert peer.ask(forward("t", [{"n": 0}, {"n": 1}], "c")) == {"ack": "c"}
        assert payloads(server) == {"c.0": {"n": 0}, "c.1": {"n": 1}}
        # A client that has missed an ack sends the chunk again.
        assert peer.ask(forward("t", [{"n": 0}, {"n": 1}], "c")) == {"ack": "c"}
    assert payloads(server) == {"c.0": {"n": 0}, "c.1": {"n": 1}}
    (event, _) = server.listed("t")
    assert (event["source"], event["timestamp"]) == ("127.0.0.1", "1970-01-01T00:00:01Z")


def test_acks_come_in_order_and_only_for_chunks(server: ServerProcess) -> None:
    with ForwardPeer(server.port_of("forward")) as peer:
        messages = [forward("t", [{"n": n}] * n, None if n % 3 == 0 else f"c{n}") for n in range(300)]
        peer.send(b"\xc0".join(messages))
        for n in range(300):
            if n % 3:
                assert peer.answer() == {"ack": f"c{n}"}
        peer.half_close()
        assert peer.answer() is None
    assert server.ask("STATS")["stored_total"] == sum(range(300))


def test_a_chunk_of_many_events_is_taken_in_turns(server: ServerProcess) -> None:
    packed = b"".join(pack([event_time(n), {"n": n}]) for n in range(40_000))
    with ForwardPeer(server.port_of("forward")) as peer:
        peer.send(pack(["t", packed, {"chunk": "c"}]))
        worst_s = 0.0
        with wire.Peer(server.port) as other:
            while server.ask("STATS")["stored_total"] < 40_000:
                asked = time.monotonic()
                other.ask(b"PING\n")
                worst_s = max(worst_s, time.monotonic() - asked)
        assert peer.answer() == {"ack": "c"}
    assert worst_s < SLACK * 0.5  # all of it takes a second


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP"),
        (pack(["t", [[1, {}], 7], {"chunk": "bad"}]), "an entry is not an array"),
        (forward("t", ["x" * 1000] * 100, "long"), r"longer than 65536 bytes \(--forward-chunk-bytes\)"),
    ],
)
def test_what_is_no_forward_closes_the_connection_and_nothing_is_half_stored(
    start_server: StartServer, stream: bytes, why: str
) -> None:
    server = start_server(*ON, "--forward-chunk-bytes", "65536")
    with ForwardPeer(server.port_of("forward")) as peer:
        peer.send(forward("t", [{"n": 0}], "good") + stream)
        assert peer.answer() == {"ack": "good"}
        assert peer.answer() is None
    assert list(payloads(server)) == ["good.0"]
    wait_until(lambda: "forward port: 127.0.0.1:" in server.log)
    (line,) = [line for line in server.log.splitlines() if "WARNING forward port" in line]
    assert "closed: " in line
    assert why.replace("\\", "") in line
    assert server.ask("STATS")["connections_refused"] == 1


def test_a_message_that_is_not_finished_in_time_ends_the_connection(start_server: StartServer) -> None:
    server = start_server(*ON, "--line-timeout", "0.5")
    with ForwardPeer(server.port_of("forward")) as idle, ForwardPeer(server.port_of("forward")) as peer:
        peer.send(forward("t", [{}], "c")[:-1])
        assert peer.answer() is None
        assert idle.ask(forward("t", [{}], "c")) == {"ack": "c"}  # a silent client may stay silent forever
    wait_until(lambda: "it did not finish a message within 0.5 s" in server.log)


def test_what_a_stream_ends_in_is_said(server: ServerProcess) -> None:
    with ForwardPeer(server.port_of("forward")) as peer:
        peer.send(forward("t", [{}], "c")[:-1])
        peer.half_close()
        assert peer.answer() is None
    wait_until(lambda: "ended within a message, which is not stored" in server.log)


def test_fields_are_named_by_options(start_server: StartServer) -> None:
    server = start_server(*ON, "--forward-id", "uuid", "--forward-source", "host")
    with ForwardPeer(server.port_of("forward")) as peer:
        peer.ask(forward("t", [{"uuid": "u1", "host": "web1"}, {}], "c"))
    assert {event["event_id"]: event["source"] for event in server.listed("t")} == {"u1": "web1", "c.1": "127.0.0.1"}


# --- the shared key


@pytest.fixture
def with_key(tmp_path: Path) -> tuple[str, ...]:
    key = tmp_path / "key"
    key.write_text("a secret\n")
    return *ON, "--forward-shared-key-file", str(key)


@pytest.fixture
def secret_server(start_server: StartServer, with_key: tuple[str, ...]) -> ServerProcess:
    return start_server(*with_key)


def test_who_knows_the_key_may_send(secret_server: ServerProcess) -> None:
    with ForwardPeer(secret_server.port_of("forward")) as peer:
        assert peer.shake_hands(b"a secret")[:3] == ["PONG", True, ""]
        assert peer.ask(forward("t", [{"x": "y" * 10_000}], "c")) == {"ack": "c"}
    assert list(payloads(secret_server)) == ["c.0"]
    assert "a secret" not in secret_server.log


def test_who_does_not_know_it_is_told_and_nothing_of_it_is_stored(secret_server: ServerProcess) -> None:
    with ForwardPeer(secret_server.port_of("forward")) as peer:
        assert peer.shake_hands(b"no secret")[:3] == ["PONG", False, "shared_key mismatch"]
        peer.send(forward("t", [{}], "c"))
        assert peer.answer() is None
    wait_until(lambda: "closed: its shared key is wrong" in secret_server.log)
    assert secret_server.ask("STATS")["stored_total"] == 0


def test_a_new_key_holds_for_new_connections(
    start_server: StartServer, with_key: tuple[str, ...], tmp_path: Path
) -> None:
    server = start_server(*with_key, prefix=("setsid",))
    number = server.port_of("forward")
    with ForwardPeer(number) as old:
        assert old.shake_hands(b"a secret")[1]
        (tmp_path / "key").write_text("another\n")
        server.signal(signal.SIGHUP)
        server.wait_for_log("reloaded")
        with ForwardPeer(number) as new:
            assert new.shake_hands(b"another")[1]
        with ForwardPeer(number) as late:
            assert not late.shake_hands(b"a secret")[1]
        (tmp_path / "key").write_text("")
        server.signal(signal.SIGHUP)
        server.wait_for_log("is empty")
        assert server.ask("STATS")["config_reload_ok"] == 0
        with ForwardPeer(number) as later:
            assert later.shake_hands(b"another")[1]
        assert old.ask(forward("t", [{}], "c")) == {"ack": "c"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (forward("t", [{}], "c"), "it sent events before the handshake: set its shared_key"),
        (b"\x96\xa4PING\xda\xff\xff" + bytes(5000), "a message is longer than 4096 bytes"),
        (b"", "it did not finish its handshake within 1 s"),
    ],
    ids=["events", "long", "nothing"],
)
def test_who_does_not_shake_hands_is_closed(
    start_server: StartServer, with_key: tuple[str, ...], data: bytes, why: str
) -> None:
    server = start_server(*with_key, *(() if data else ("--line-timeout", "1")))
    with ForwardPeer(server.port_of("forward")) as peer:
        assert peer.answer()[0] == "HELO"
        assert peer.ask(data) is None
    wait_until(lambda: f"closed: {why}" in server.log)
    stats = server.ask("STATS")
    assert (stats["stored_total"], stats["connections_refused"]) == (0, 1)


# --- limits, and ends


def test_over_the_limit_of_connections_a_client_is_closed(start_server: StartServer) -> None:
    server = start_server(*ON, "--max-connections", "2")
    number = server.port_of("forward")
    with ForwardPeer(number) as peer, ForwardPeer(number):
        peer.ask(forward("t", [{}], "c"))
        with ForwardPeer(number) as third:
            assert third.answer() is None
    wait_until(lambda: "a client was refused: 2 connections are open" in server.log)


def test_a_client_that_never_reads_acks_is_muted_and_its_events_are_stored(start_server: StartServer) -> None:
    """T65."""
    server = start_server(*ON, changes=[impatient])
    chunk = "c" * 150
    with ForwardPeer(server.port_of("forward"), receive_buffer=4096) as peer:
        sent = 0
        while not server.ask("STATS")["muted"]:
            assert sent < 100_000
            peer.send(b"".join(forward("t", [{}], f"{chunk}{n:06}") for n in range(sent, sent + 1000)))
            sent += 1000
        peer.half_close()
        wait_until(lambda: server.ask("STATS")["stored_total"] == sent)
        wait_until(lambda: "does not read its replies: muted, but its events are still stored" in server.log)
        wait_until(lambda: "require_ack_response" in server.log)


def test_a_small_queue_slows_clients_and_loses_nothing(start_server: StartServer) -> None:
    server = start_server(*ON, "--queue-events", "100")
    number = server.port_of("forward")
    with ForwardPeer(number) as one, ForwardPeer(number) as other:
        for peer, name in ((one, "a"), (other, "b")):
            in_background(
                lambda peer=peer, name=name: peer.send(  # type: ignore[misc]
                    b"".join(forward("t", [{"n": n}] * 20, f"{name}{n}") for n in range(1000))
                )
            )
        for n in range(1000):
            assert one.answer() == {"ack": f"a{n}"}
            assert other.answer() == {"ack": f"b{n}"}
    assert server.ask("STATS")["stored_total"] == 40_000


NULLS = [[1, {"a": [None] * 1_000_000}]] * 4
WORST = {
    "heartbeats": b"\xc0" * (8 << 20),
    "empty messages": b"\x93\xa0\x00\x80" * (1 << 16),
    "a bomb of nulls": pack(["t", gzip.compress(b"".join(map(pack, NULLS))), {"compressed": "gzip"}]),
    "a bomb of nothing": pack(["t", gzip.compress(b"") * (1 << 16), {"compressed": "gzip"}]),
    "arrays that are nested too deeply": b"\x92" + b"\x91" * (1 << 16),
}


@pytest.mark.parametrize("worst", WORST)
def test_few_bytes_that_take_long_hold_up_nobody(start_server: StartServer, worst: str) -> None:
    """T51 on the Forward port. Processed in one go, the heartbeats took 31 s, and the nulls more than 10 s."""
    server = start_server(*ON)
    with ForwardPeer(server.port_of("forward")) as heavy, Peer(server.port) as other:
        sending = in_background(lambda: heavy.send(WORST[worst]))
        waits = []
        for _ in range(40):
            started = time.monotonic()
            assert other.ask(b"PING\n")["pong"]
            waits.append(time.monotonic() - started)
            time.sleep(0.02)  # the pace of the client that asks
        assert max(waits) < HELD_UP_S
        heavy.close()
        with contextlib.suppress(OSError):
            sending.finish()


def test_stopping_acks_what_was_read_and_stores_what_still_comes(start_server: StartServer) -> None:
    server = start_server(*ON, changes=[patient_with_silence])
    with ForwardPeer(server.port_of("forward")) as peer:
        peer.send(b"".join(forward("t", [{"n": n}], f"c{n}") for n in range(1000)))
        assert peer.answer() == {"ack": "c0"}
        server.signal(signal.SIGTERM)
        acked = 1
        while peer.answer():
            acked += 1
        peer.send(forward("late", [{"acked": False}], "late") + forward("late", [{"acked": None}]))
    assert server.wait() == 0
    server.restart()
    stored = payloads(server)
    assert {f"c{n}.0" for n in range(acked)} <= set(stored)
    # A client that wants an ack sends the chunk again, maybe under another name; one that wants none never does.
    assert list(payloads(server, "late").values()) == [{"acked": None}]


def test_without_msgpack_it_says_what_to_install(tmp_path: Path) -> None:
    program = "import sys; sys.modules['msgpack'] = None; from aggregator import cli; sys.exit(cli.main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", "--port", "0", "--silent-port", "0", *ON],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "aggregator: the forward port needs msgpack: pip install 'aggregator[forward]'\n"


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), ("\n", "is empty")])
def test_a_key_that_cannot_be_read(new_server: StartServer, tmp_path: Path, content: str | None, why: str) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_text(content)
    server = new_server(*ON, "--forward-shared-key-file", str(key))
    assert not server.try_to_start()
    assert server.log.count("\n") == 1
    assert why in server.log
    wait_until(lambda: "--forward-shared-key-file" in server.log)
