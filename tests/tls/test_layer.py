"""The layer alone: however its ciphertext is cut, the protocol above sees the same; and turns of handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator.config import Config
from aggregator.server import tls
from aggregator.server.admission import Admission
from aggregator.server.handshakes import STEPS_A_TURN, HandshakeTurns
from aggregator.server.peer_log import PeerLog
from aggregator.server.port import TLS, TLS_SILENT
from aggregator.server.tls import TlsLayer, TlsTransport
from tests.harness.certificates import Authority, Pair
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
    """The protocol above; it may pause after each piece."""

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


class Session:
    """A layer, and a client's TLS."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext, silent: bool = False) -> None:
        self.plain, self.above = Plain(), Above()
        self.results: list[tuple[str, str]] = []
        self.lost = 0
        self.layer = TlsLayer(
            self.plain, lambda: server, TLS_SILENT if silent else TLS, HandshakeTurns(), Admission(Config(), PeerLog()),
            self._opened, lambda _, result, why: self.results.append((result, why)), self._lose,
        )  # fmt: skip
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client.wrap_bio(self._in, self._out, server_hostname="localhost")

    def _opened(self, layer: TlsLayer, transport: TlsTransport) -> Above:
        self.above.transport = transport
        return self.above

    def _lose(self, layer: TlsLayer) -> None:
        self.lost += 1

    def take(self) -> bytes:
        """What the client has to send."""
        return self._out.read()

    def give(self) -> None:
        """Hand what the server has written to the client."""
        self._in.write(bytes(self.plain.written))
        self.plain.written.clear()

    async def shake_hands(self, size: int = 1 << 16) -> None:
        while not self.above_is_there:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
            await self.send(self.take(), size)
            await until(lambda: not self.plain.paused)
            self.give()

    async def send(self, data: bytes, size: int) -> None:
        """In pieces of this size; reading is never paused for long."""
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
)
def test_however_it_is_cut_the_same_is_read(
    server_context: ssl.SSLContext,
    authority: Authority,
    lines: list[bytes],
    size: int,
    version: ssl.TLSVersion,
    notify: bool,
) -> None:
    async def run() -> None:
        session = Session(server_context, authority.trusting(version=version))
        await session.shake_hands(size=max(size, 100))
        for line in lines:
            session.tls.write(line)
        if notify:
            with pytest.raises(ssl.SSLWantReadError):
                session.tls.unwrap()
        data = session.take()
        step = max(size, len(data) // 200)
        await session.send(data, step)
        session.layer.eof_received()
        assert session.above.read == b"".join(lines)
        assert session.above.ends == 1
        assert session.layer.is_cut is not notify
        assert session.results == [("ok", "")]
        session.layer.connection_lost(None)

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
    session.layer._out.write(b"an answer of OpenSSL's own")  # to a KeyUpdate, say
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
        session.above.transport.resume_reading()  # it knows nothing of that
        assert session.plain.paused
        if still_reads:
            session.plain.buffered = 0
            await until(lambda: not session.plain.paused)
            session.plain.buffered = 50
    await until(lambda: session.plain.closed)
    session.layer.connection_lost(None)


async def test_steps_of_handshakes_leave_half_of_the_loop_to_others() -> None:
    turns = HandshakeTurns()
    steps: list[int] = []
    order: list[str] = []

    def step() -> None:
        steps.append(len(order))

    def other() -> None:
        order.append("other")
        if len(steps) < 100:
            asyncio.get_running_loop().call_soon(other)

    for _ in range(100):
        turns.run(step)
    other()
    await until(lambda: len(steps) == 100)
    assert max(steps.count(turn) for turn in set(steps)) <= STEPS_A_TURN
    assert not turns._waiting
