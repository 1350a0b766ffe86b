"""The Forward port when something breaks: death between commit and ack, full disks, and decompression bombs."""

from __future__ import annotations

import contextlib
import gzip
import signal

import pytest

from tests.harness.changes import dies_before_the_third_ack_of_a_chunk
from tests.harness.disk import SmallDisk
from tests.harness.forward import ForwardPeer, forward, pack
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import free_port

CHUNKS = 12
EVENTS = 50


def send_until_acked(server: ServerProcess, chunks: list[bytes]) -> tuple[int, int]:
    """Send chunks in order, each until it is acked; return how many were sent, and how many times a server died."""
    sent = died = 0
    number = server.port_of("forward")
    waiting = list(enumerate(chunks))
    while waiting:
        with ForwardPeer(number) as peer:
            while waiting:
                n, chunk = waiting[0]
                peer.send(chunk)
                sent += 1
                if peer.answer() != {"ack": f"c{n}"}:
                    break
                waiting.pop(0)
        if waiting:
            assert server.wait() == -signal.SIGKILL
            died += 1
            server.restart()
    return sent, died


def test_death_between_commit_and_ack_loses_and_doubles_nothing(
    start_server: StartServer, record_figures: RecordFigures
) -> None:
    """Each server dies when its third chunk is on disk but not acked: the client sends that chunk again."""
    server = start_server("--forward-port", str(free_port()), changes=[dies_before_the_third_ack_of_a_chunk])
    chunks = [forward("t", [{"n": n, "i": i} for i in range(EVENTS)], f"c{n}") for n in range(CHUNKS)]

    sent, died = send_until_acked(server, chunks)

    assert died > 0
    assert sent == CHUNKS + died
    stored = {event_id: event["payload"] for event_id, event in server.stored("t").items()}
    assert stored == {f"c{n}.{i}": {"n": n, "i": i} for n in range(CHUNKS) for i in range(EVENTS)}
    record_figures("Forward: death between commit and ack", rounds=died, sent=sent * EVENTS, lost=0, doubled=0)


def test_kill_9_under_load_loses_and_doubles_nothing(start_server: StartServer, record_figures: RecordFigures) -> None:
    server = start_server("--forward-port", str(free_port()))
    chunks = {f"c{n}": forward("t", [{"n": n}] * EVENTS, f"c{n}") for n in range(2000)}
    kills = 0
    while chunks:
        with ForwardPeer(server.port_of("forward")) as peer, contextlib.suppress(ConnectionError):
            peer.send(b"".join(chunks.values()))
            for acked in range(len(chunks)):
                if acked == 300:
                    server.kill()  # a few more acks may have arrived
                if not (answer := peer.answer()):
                    break
                del chunks[answer["ack"]]
        if server.process.poll() is not None:
            kills += 1
            server.restart()
    assert kills > 0
    assert len(server.stored("t")) == 2000 * EVENTS
    record_figures("Forward: kill -9 under load", rounds=kills, sent=2000 * EVENTS, lost=0, doubled=0)


@pytest.mark.root
def test_what_a_full_disk_does_not_take_is_not_acked(start_server: StartServer, small_disk: SmallDisk) -> None:
    """Forward has no message for that: the connection is closed, and the client retries until there is space."""
    server = start_server("--forward-port", str(free_port()), db=small_disk.folder / "events.db")
    acked: list[str] = []
    refused = None
    for n in range(20_000):
        with ForwardPeer(server.port_of("forward")) as peer:
            answer = peer.ask(forward("t", [{"x": "y" * 1000}] * 20, f"c{n}"))
            if answer is None:
                refused = n
                break
            acked.append(answer["ack"])
    assert refused is not None
    server.wait_for_log("closed without an ack: no space left")
    assert server.ask("HEALTH")["health"] == "degraded"

    small_disk.remount("size=64m")
    wait_until(lambda: server.ask("HEALTH")["health"] == "healthy")
    with ForwardPeer(server.port_of("forward")) as peer:
        assert peer.ask(forward("t", [{"x": "y" * 1000}] * 20, f"c{refused}")) == {"ack": f"c{refused}"}
    assert len(server.stored("t")) == 20 * (len(acked) + 1)


def test_a_bomb_costs_a_bounded_memory_and_is_not_stored(start_server: StartServer) -> None:
    server = start_server("--forward-port", "0")
    before = server.rss_bytes
    bomb = gzip.compress(pack([1, {"a": "x" * 1000}]) * 1000) * 1000  # a GB
    with ForwardPeer(server.port_of("forward")) as peer:
        assert peer.ask(pack(["t", bomb, {"compressed": "gzip", "chunk": "c"}])) is None
    wait_until(lambda: "unpack to more than" in server.log or "its events take more than" in server.log)
    assert server.ask("STATS")["stored_total"] == 0
    assert server.rss_bytes - before < 400 << 20
