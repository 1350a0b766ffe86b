"""Readers next to senders at full speed: readers that join at any moment, that are slow, that stop, that catch up."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.harness.account import Account
from tests.harness.background import FINISH_S, Background
from tests.harness.changes import too_full_buffers_are_logged
from tests.harness.load_client import Load
from tests.harness.polling import wait_until
from tests.harness.reading import Reading, judge, total, verify
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import CATCH_UP_S, CATCHING_UP, FLAPS, JOINING, LONG
from tests.harness.wire import Peer, exchange

MIB: Final = 1 << 20
PAYLOAD: Final = f'{{"n":"NAME","x":"{"x" * 2000}"}}'


def head(server: ServerProcess) -> int:
    return int(server.ask("EVENTS * 1")["seq"])


def test_readers_that_join_at_any_moment_get_everything(
    server: ServerProcess, moments: random.Random, record_figures: RecordFigures
) -> None:
    """R2: from the beginning, from a seq, from a moment, from now, of all topics and of one, and by name."""
    accounts = [Account("app.a"), Account("app.b")]
    loads = [Load(account, server.port, 2, account.topic, in_flight=20) for account in accounts]
    for load in loads:
        load.wait_for_acks()
    readings: list[Reading] = []
    for number in range(JOINING):
        seen = head(server)
        start = moments.choice(("AFTER 0", f"AFTER {moments.randint(0, seen)}", "SINCE 1s", "", f"AS n{number}"))
        readings.append(Reading(server.port, f"{moments.choice(('*', 'app.b'))} {start} BEAT 1", accounts))
        loads[number % 2].wait_for_acks(moments.randint(1, 100))
    for load in loads:
        load.stop()
        load.finish()
    last = head(server)
    verdicts = []
    for reading in readings:
        reading.wait_for(last)
        wanted = ("app.a", "app.b") if reading.arguments.startswith("*") else ("app.b",)
        verdicts.append(verify(reading, accounts, lambda topic, wanted=wanted: topic in wanted))  # type: ignore[misc]
        assert reading.said.count("caught_up") == 1
        reading.close()
    wait_until(lambda: server.ask("STATS")["subscribers"] == 0)
    record_figures("readers join", rounds=JOINING, **total(verdicts))
    for account in accounts:
        account.verify(server)


def test_a_reader_that_falls_behind_again_and_again_misses_nothing(
    start_server: StartServer, record_figures: RecordFigures
) -> None:
    """R5: it stops reading until it is no longer live, and then comes back."""
    server = start_server(changes=[too_full_buffers_are_logged])
    account = Account()
    reading = Reading(server.port, "* AFTER 0 BEAT 1", [account], receive_buffer=4096)
    for number in range(FLAPS):
        reading.wait_for_line("caught_up")
        wait_until(lambda: server.ask("SUBSCRIBERS")["subscribers"][0]["state"] == "live")
        fell_behind = server.ask("STATS")["fell_behind"]
        reading.pause()
        batch = 0
        while server.ask("STATS")["fell_behind"] == fell_behind:
            account.send(server.port, f"r{number}-{batch}", 100, PAYLOAD)
            batch += 1
        reading.go_on()
        account.send(server.port, f"back{number}", 5)
    reading.wait_for(head(server))
    verdict = verify(reading, [account])
    assert reading.said.count("caught_up") == 1
    reading.close()
    assert "a write buffer" not in server.log
    record_figures("flapping reader", rounds=FLAPS, **verdict.figures)


def test_slow_readers_hold_up_nobody_and_lose_nothing(start_server: StartServer, record_figures: RecordFigures) -> None:
    """R4: readers at 1 KiB/s, stopped, and never reading, next to senders. The senders do about as well as those of a
    server without readers; the memory for each reader is bounded; readers that go on get all the rest."""
    server, unharmed = start_server(changes=[too_full_buffers_are_logged]), start_server()
    account, other = Account(), Account()
    with contextlib.ExitStack() as stack:
        never = [stack.enter_context(Peer(server.port, receive_buffer=4096)) for _ in range(5)]
        for peer in never:
            peer.send(b"SUBSCRIBE * AFTER 0\n")
        slow = [Reading(server.port, "* BEAT 1", [account], receive_buffer=4096, bytes_per_s=1024) for _ in range(3)]
        stopped = [
            Reading(server.port, "* AFTER 0 BEAT 1", [account], receive_buffer=4096, paused=True) for _ in range(3)
        ]
        loads = [
            Load(account, server.port, 4, payload=PAYLOAD, in_flight=20),
            Load(other, unharmed.port, 4, payload=PAYLOAD, in_flight=20),
        ]
        wait_until(lambda: {one["state"] for one in server.ask("SUBSCRIBERS")["subscribers"]} == {"stalled"}, 60)
        before = [load.acks for load in loads]
        loads[1].wait_for_acks(500)
        acks, control = (load.acks - number for load, number in zip(loads, before, strict=True))
        for load in loads:
            load.stop()
            load.finish()
        for reading in stopped:
            reading.go_on()
        last = head(server)
        verdicts = []
        for reading in stopped:
            reading.wait_for(last)
            verdicts.append(verify(reading, [account]))
        for reading in slow:
            verdicts.append(judge([reading], [account]))
            verdicts[-1].assert_flawless()
            reading.close()
        for reading in stopped:
            reading.close()
    assert "a write buffer" not in server.log
    assert acks > control / 4, "they are held up"
    account.verify(server)
    record_figures("slow readers", **total(verdicts), acks=acks, control_acks=control)


@pytest.mark.parametrize(
    ("size", "count"), [(MIB - 200, 24), (60_000, 400), (100, 60_000)], ids=["1 MiB", "60 KB", "100 B"]
)
def test_what_waits_for_a_reader_is_bounded(
    start_server: StartServer, size: int, count: int, record_figures: RecordFigures
) -> None:
    """R4, S4: 512 KiB and one line for each reader, in the backlog and live, whatever the lines are."""
    server = start_server(changes=[too_full_buffers_are_logged])
    account = Account()
    half = count // 2
    payload = f'{{"x":"{"x" * size}"}}'
    account.send(server.port, "old", half, payload)
    memory = server.rss_bytes
    with contextlib.ExitStack() as stack:
        live = [stack.enter_context(Peer(server.port, receive_buffer=4096)) for _ in range(10)]
        for peer in live:
            peer.send(b"SUBSCRIBE *\n")
            assert peer.replies(2)[1]["status"] == "caught_up"
        behind = [stack.enter_context(Peer(server.port, receive_buffer=4096)) for _ in range(10)]
        for peer in behind:
            peer.send(b"SUBSCRIBE * AFTER 0\n")
        account.send(server.port, "new", count - half, payload)
        wait_until(lambda: {one["state"] for one in server.ask("SUBSCRIBERS")["subscribers"]} == {"stalled"})
        held = server.rss_bytes - memory
        for peer in (live[0], behind[0]):
            received = 0
            while received < (half if peer is behind[0] else count - half):
                received += peer.reply()["status"] == "event"
    assert "a write buffer" not in server.log
    record_figures("bounded buffers", held_bytes=held, line_bytes=size)
    assert held < 20 * (MIB // 2 + size) + 100 * MIB


@contextlib.contextmanager
def catching_up(server: ServerProcess, count: int) -> Iterator[list[int]]:
    """This many readers, each from the beginning to the end, again and again; yields the bytes that each has read."""
    read = [0] * count
    enough = threading.Event()

    def work(number: int) -> None:
        buffer = bytearray(MIB)
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.settimeout(FINISH_S)
            while not enough.is_set():
                connection.sendall(b"SUBSCRIBE * AFTER 0 UNTIL NOW BEAT 0\n")
                end = b""
                while b'{"status":"end"' not in end:
                    size = connection.recv_into(buffer)
                    assert size, "the connection has ended"
                    read[number] += size
                    end = end[-100:] + bytes(buffer[max(0, size - 200) : size])

    workers = [Background(lambda number=number: work(number)) for number in range(count)]  # type: ignore[misc]
    try:
        yield read
    finally:
        enough.set()
    for worker in workers:
        worker.finish()


def test_catching_up_under_load_leaves_wal_and_memory_level(
    server: ServerProcess, record_figures: RecordFigures
) -> None:
    """R18: no statement is kept open for a slow client, so the WAL is cut as always; what was read is not kept."""
    account = Account()
    account.send(server.port, "first", 20_000, '{"x":"0123456789012345678901234567890123456789"}')
    load = Load(account, server.port, 8, in_flight=20)
    load.wait_for_acks()
    wal: list[int] = []
    memory: list[int] = []
    with catching_up(server, CATCHING_UP) as read:
        ends = time.monotonic() + CATCH_UP_S
        while time.monotonic() < ends:
            checks = server.ask("HEALTH")["checks"]
            wal.append(checks["wal_bytes"])
            memory.append(server.rss_bytes)
            assert checks["storage"] == "ok"
            time.sleep(0.1)  # between looks
        load.stop()
    load.finish()
    assert all(read), "each has read"
    assert max(wal) < 64 * MIB
    settled = memory[len(memory) // 3 :]
    record_figures(
        "catching up under load", read_bytes=sum(read), wal_bytes=max(wal), grown_bytes=settled[-1] - settled[0],
        acks=len(account.acked),
    )  # fmt: skip
    assert settled[-1] - settled[0] < (100 if LONG else 60) * MIB
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_reader_that_vanishes_in_the_middle_of_everything_harms_nobody(
    server: ServerProcess, moments: random.Random
) -> None:
    """R11: resets in mid-line and closes without reading, at random moments of a load. No place or descriptor leaks."""
    account = Account()
    account.send(server.port, "old", 2000, PAYLOAD)
    reading = Reading(server.port, "* AFTER 0 BEAT 1", [account])
    reading.wait_for_line("caught_up")
    descriptors = server.descriptors
    load = Load(account, server.port, 2, in_flight=20, payload=PAYLOAD)
    for number in range(100):
        peer = Peer(server.port, receive_buffer=moments.choice((4096, 1 << 20)))
        peer.send(
            moments.choice((b"SUBSCRIBE * AFTER 0 BEAT 1\n", b"SUBSCRIBE *\n", b"SUBSCRIBE * AS n%d\n" % (number % 5)))
        )
        if moments.random() < 0.7:
            peer.socket.recv(moments.randint(1, 5000))
        if moments.random() < 0.2:
            peer.half_close()
        if moments.random() < 0.5:
            peer.reset()
        else:
            peer.close()
    load.stop()
    load.finish()
    exchange(server.port, account.line("last"))
    reading.wait_for(head(server))
    verify(reading, [account])
    wait_until(lambda: server.ask("STATS")["connections"] == 2)
    wait_until(lambda: server.ask("STATS")["subscribers"] == 1)
    wait_until(lambda: server.descriptors <= descriptors)
    reading.close()
    assert "Traceback" not in server.log
