"""The TLS layer alone: the protocol above reads the same however the ciphertext is cut; and turns of handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import itertools
import ssl
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator.server import tls, tls_turns
from aggregator.server.port import TLS, TLS_SILENT
from aggregator.server.tls import Result, TlsLayer
from aggregator.server.tls_transport import TlsTransport
from aggregator.server.tls_turns import REST_S, TURN_S, TlsTurns
from tests.harness.certificates import Authority, Pair
from tests.harness.key_updates import KeyUpdater, library
from tests.harness.polling import until


class Plain(asyncio.Transport):
    """A plain transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.buffered = 0
        self.paused = self.ended = self.closed = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 5000) if name == "peername" else default

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def write(self, data: Any) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


class Above(asyncio.Protocol):
    """The protocol above the layer; it may pause reading after each piece."""

    def __init__(self) -> None:
        self.read = b""
        self.ends = 0
        self.transport: TlsTransport
        self.pauses = False

    def data_received(self, data: bytes) -> None:
        assert not self.ends
        self.read += data
        if self.pauses:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self.ends += 1
        return True


class Owner:
    """Records the outcome of a handshake."""

    def __init__(self, above: Above) -> None:
        self.above = above
        self.is_stranger = False
        self.results: list[str] = []
        self.lost_ = 0
        self.traces: list[str] = []

    def opened(self, transport: TlsTransport) -> None:
        self.results.append("ok")
        self.above.transport = transport

    def finished(self, result: Result, why: str) -> None:
        self.results.append(f"{result.value}: {why}")

    def broken(self, trace: str) -> None:
        self.traces.append(trace)

    def lost(self) -> None:
        self.lost_ += 1


class Session:
    """A TLS layer, and the TLS of a client."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext, silent: bool = False) -> None:
        self.plain, self.above = Plain(), Above()
        self.owner, self.turns = Owner(self.above), TlsTurns()
        self.layer = TlsLayer(
            self.plain, self.above, lambda: server, TLS_SILENT if silent else TLS, self.turns, self.owner
        )
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client.wrap_bio(self._in, self._out, server_hostname="localhost")

    def take(self) -> bytes:
        """The bytes that the client has to send."""
        return self._out.read()

    def give(self) -> None:
        """Hand the client the bytes that the server has written."""
        self._in.write(bytes(self.plain.written))
        self.plain.written.clear()

    async def shake_hands(self, size: int = 1 << 16) -> None:
        is_done = False
        while not is_done or not self.above_is_there:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                is_done = True
            await self.send(self.take(), size)
            await until(lambda: not self.plain.paused)
            self.give()

    async def send(self, data: bytes, size: int) -> None:
        """Feed the layer in pieces of this size, and wait whenever it pauses reading."""
        for start in range(0, len(data), size):
            self.layer.data_received(data[start : start + size])
            await until(lambda: not self.plain.paused)

    @property
    def above_is_there(self) -> bool:
        return hasattr(self.above, "transport")


@pytest.fixture(scope="module")
def server_context(pair: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.num_tickets = 0
    return context


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.binary(min_size=1, max_size=40_000), max_size=5),
    size=st.integers(min_value=1, max_value=50_000),
    version=st.sampled_from([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]),
    notify=st.booleans(),
    stranger=st.booleans(),
    slow=st.booleans(),
)
def test_however_it_is_cut_the_same_is_read(
    server_context: ssl.SSLContext,
    authority: Authority,
    lines: list[bytes],
    size: int,
    version: ssl.TLSVersion,
    notify: bool,
    stranger: bool,
    slow: bool,
) -> None:
    async def run() -> None:
        session = Session(server_context, authority.trusting(version=version))
        session.owner.is_stranger = stranger
        await session.shake_hands(size=max(size, 100))
        for line in lines:
            session.tls.write(line)
        if notify:
            with pytest.raises(ssl.SSLWantReadError):
                session.tls.unwrap()
        data = session.take()
        step = max(size, len(data) // 200)
        for start in range(0, len(data), step):
            session.layer.data_received(data[start : start + step])
        session.layer.eof_received()
        await until(lambda: session.above.ends)
        assert session.above.read == b"".join(lines)
        assert session.above.ends == 1
        assert session.layer.is_cut is not notify
        assert session.owner.results == ["ok"]
        session.layer.connection_lost(None)

    with pytest.MonkeyPatch.context() as changed:
        if slow:
            changed.setattr(tls, "SLOW_S", -1.0)  # each slice gets a turn of its own
        asyncio.run(run())


async def test_the_end_waits_while_reading_is_paused(server_context: ssl.SSLContext, authority: Authority) -> None:
    session = Session(server_context, authority.trusting())
    await session.shake_hands()
    session.above.pauses = True
    session.tls.write(b"x")
    with pytest.raises(ssl.SSLWantReadError):
        session.tls.unwrap()
    session.layer.data_received(session.take())
    assert (session.above.read, session.above.ends, session.plain.paused) == (b"x", 0, True)
    session.above.transport.resume_reading()
    await until(lambda: session.above.ends == 1)
    assert not session.plain.paused
    session.layer.connection_lost(None)


@pytest.mark.parametrize("silent", [False, True])
async def test_our_end_is_a_close_notify_unless_the_port_is_silent(
    server_context: ssl.SSLContext, authority: Authority, silent: bool
) -> None:
    session = Session(server_context, authority.trusting(), silent)
    await session.shake_hands()
    session.plain.written.clear()
    session.above.transport.write_eof()
    assert session.plain.ended
    assert bool(session.plain.written) is not silent
    if not silent:
        session.give()
        assert session.tls.read(1) == b""
    session.plain.written.clear()
    session.layer._out.write(b"an answer of OpenSSL's own")  # for example to a KeyUpdate
    session.tls.write(b"x")
    session.layer.data_received(session.take())
    assert (session.above.read, bytes(session.plain.written)) == (b"x", b"")
    session.layer.connection_lost(None)


async def test_who_is_there_is_known_from_the_certificate(pair: Pair, authority: Authority) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    session = Session(context, authority.trusting(authority.issue("web-1", names="DNS:web,IP:192.0.2.7,email:a@b.c")))
    await session.shake_hands()
    credentials = session.above.transport.get_extra_info("credentials")
    assert credentials.certificate == ("DNS:web-1", "DNS:web", "CN:web-1")
    assert (credentials.address, credentials.uid, credentials.tls) == ("192.0.2.1", None, "TLSv1.3")
    assert credentials.is_private
    assert not credentials.is_local
    session.layer.connection_lost(None)


async def test_answers_that_nobody_reads_stop_the_reading_and_then_the_connection(
    server_context: ssl.SSLContext, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each KeyUpdate of a peer is answered by one of ours (RFC 8446, section 4.6.3)."""
    monkeypatch.setattr(tls, "OWN_BYTES", 100)
    monkeypatch.setattr(tls, "OWN_BYTES_S", 0.05)
    session = Session(server_context, authority.trusting())
    await session.shake_hands()
    session.plain.buffered = 50
    for still_reads in (True, False):
        session.layer._out.write(b"a" * 101)  # as OpenSSL does
        session.tls.write(b"x")
        session.layer.data_received(session.take())
        assert session.plain.paused
        session.above.transport.resume_reading()  # the protocol above does not know of the layer's pause
        assert session.plain.paused
        if still_reads:
            session.plain.buffered = 0
            await until(lambda: not session.plain.paused)
            session.plain.buffered = 50
    await until(lambda: session.plain.closed)
    session.layer.connection_lost(None)


async def test_what_comes_after_the_peers_end_is_dropped(server_context: ssl.SSLContext, authority: Authority) -> None:
    session = Session(server_context, authority.trusting())
    await session.shake_hands()
    with pytest.raises(ssl.SSLWantReadError):
        session.tls.unwrap()
    session.layer.data_received(session.take() + b"x" * 100_000)
    for _ in range(10):
        session.layer.data_received(b"x" * 100_000)
    assert session.above.ends == 1
    assert session.layer._in.pending + len(session.layer._ciphertext) < tls.READ_BYTES // 10
    session.layer.connection_lost(None)


@pytest.mark.parametrize("way", ["open", "shaking hands", "new"])
async def test_nothing_of_a_closed_connection_waits_for_the_collector(
    server_context: ssl.SSLContext, authority: Authority, way: str
) -> None:
    session = Session(server_context, authority.trusting())
    if way == "open":
        await session.shake_hands()
    elif way == "shaking hands":
        with contextlib.suppress(ssl.SSLWantReadError):
            session.tls.do_handshake()
        await session.send(session.take(), 1 << 16)
    layer = weakref.ref(session.layer)
    openssl = weakref.ref(session.layer._tls) if way != "new" else None
    gc.disable()
    try:
        session.layer.connection_lost(None)
        assert openssl is None or openssl() is None
        del session.layer, session.plain.protocol
        if way == "open":
            del session.above.transport
        await asyncio.sleep(0)
        assert layer() is None
    finally:
        gc.enable()


# --- what strangers can make it do


async def test_a_defect_ends_one_client(
    server_context: ssl.SSLContext, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Session(server_context, authority.trusting())
    monkeypatch.setattr(broken.owner, "opened", None)
    with contextlib.suppress(ssl.SSLWantReadError):
        broken.tls.do_handshake()
    await broken.send(broken.take(), 1 << 16)
    broken.give()
    broken.tls.do_handshake()
    broken.layer.data_received(broken.take())
    other = Session(server_context, authority.trusting())
    other.turns = broken.turns
    other.layer._turns = broken.turns
    await other.shake_hands()
    assert broken.plain.closed
    assert "TypeError" in broken.owner.traces[0]
    broken.layer.connection_lost(None)
    other.layer.connection_lost(None)


@pytest.fixture
async def key_updater(server_context: ssl.SSLContext) -> tuple[Session, KeyUpdater]:
    """A TLS layer, and a client that has completed the handshake with it."""
    if not library():
        pytest.skip("needs OpenSSL's library")
    session = Session(server_context, ssl.create_default_context())
    client = KeyUpdater()
    while not client.shake_hands() or not session.above_is_there:
        await session.send(client.take(), 1 << 16)
        client.give(bytes(session.plain.written))
        session.plain.written.clear()
    return session, client


async def test_records_that_hold_nothing_end_a_client(key_updater: tuple[Session, KeyUpdater]) -> None:
    session, client = key_updater
    client.update_keys(5000)
    flood = client.take()
    for start in range(0, len(flood), 1000):
        session.layer.data_received(flood[start : start + 1000])
        if session.plain.closed:
            break
    assert start <= tls.IDLE_BYTES + 1000 < len(flood)
    session.layer.connection_lost(None)


async def test_the_work_for_a_stranger_is_split_over_turns(key_updater: tuple[Session, KeyUpdater]) -> None:
    session, client = key_updater
    session.owner.is_stranger = True
    for _ in range(5):
        client.update_keys(2000)
        client.write(b"x")
    flight = client.take()
    steps: list[int] = []
    run = session.turns.run

    def counted(step: Callable[[], None]) -> None:
        def measured() -> None:
            before = len(session.layer._ciphertext)
            step()
            steps.append(before - len(session.layer._ciphertext))

        run(measured)

    session.turns.run = counted  # type: ignore[method-assign]
    session.layer.data_received(flight)
    assert len(session.layer._ciphertext) == len(flight), "nothing is done at once"
    assert session.plain.paused
    await until(lambda: not session.plain.paused)
    assert session.above.read == b"xxxxx"
    assert max(steps) <= tls.STRANGER_BYTES
    session.layer.connection_lost(None)


async def test_what_was_read_is_handed_on_before_the_end(
    key_updater: tuple[Session, KeyUpdater], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known client waits for another turn when the reset comes."""
    monkeypatch.setattr(tls, "SLOW_S", -1.0)
    session, client = key_updater
    lost: list[bytes] = []
    monkeypatch.setattr(session.above, "connection_lost", lambda _: lost.append(session.above.read))
    for _ in range(3):
        client.update_keys(1500)
        client.write(b"x")
    session.layer.data_received(client.take())
    session.plain.closed = True
    session.layer.connection_lost(ConnectionResetError())
    assert lost == []
    await until(lambda: lost)
    assert lost == [b"xxx"]


# --- turns


class Loop:
    """An event loop and its clock. Like uvloop, it sleeps for whole milliseconds and may wake a little early."""

    def __init__(self, early_s: float) -> None:
        self.now = 1000.0
        self._early_s = early_s
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def monotonic(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.call_later(0.0, callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        due = self.now + max(0.0, round(delay_s, 3) - self._early_s)
        heapq.heappush(self._due, (due, next(self._numbers), callback))

    def run(self) -> None:
        while self._due:
            due, _, callback = heapq.heappop(self._due)
            self.now = max(self.now + 0.00001, due)
            callback()


@pytest.fixture(params=[0.0, 0.0009])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    made = Loop(request.param)
    monkeypatch.setattr(tls_turns, "time", made)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    yield made
    monkeypatch.undo()


@pytest.mark.parametrize("step_s", [0.0001, 0.0003, 0.0011, 0.006])
def test_steps_leave_half_of_the_time_to_others(loop: Loop, step_s: float) -> None:
    turns = TlsTurns()
    done: list[float] = []

    def step() -> None:
        loop.now += step_s
        done.append(loop.now)

    for _ in range(200):
        turns.run(step)
    started = loop.now
    loop.run()
    assert len(done) == 200
    busy_s = 200 * step_s
    assert loop.now - started >= 2 * busy_s - TURN_S - step_s - REST_S
    assert loop.now - started <= 4 * busy_s + 0.01, "and not much more"
    longest = max(sum(1 for other in done if one <= other < one + TURN_S + step_s) for one in done)
    assert longest <= (TURN_S + step_s) / step_s + 2
    turns.run(step)
    loop.run()
    assert len(done) == 201


def test_short_turns_are_rested_from_too(loop: Loop) -> None:
    """Steps that come one at a time, each shorter than the shortest sleep of an event loop."""
    turns, step_s, count = TlsTurns(), 0.0003, 200
    done: list[float] = []

    def step() -> None:
        loop.now += step_s
        done.append(loop.now)
        if len(done) < count:
            loop.call_soon(lambda: turns.run(step))

    started = loop.now
    turns.run(step)
    loop.run()
    assert len(done) == count
    assert loop.now - started >= 2 * count * step_s - step_s - REST_S


def test_a_step_that_raises_holds_up_no_other(loop: Loop) -> None:
    turns = TlsTurns()
    done: list[int] = []

    def broken() -> None:
        raise ZeroDivisionError

    for number in range(3):
        turns.run(broken)
        turns.run(lambda number=number: done.append(number))  # type: ignore[misc]
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            loop.run()
    loop.run()
    assert done == [0, 1, 2]
