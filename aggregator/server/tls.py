"""TLS as a layer between a plain transport and a client's protocol. OpenSSL does the TLS, the plain transport the rest.

(``asyncio.start_server(ssl=…)`` shows a connection to nobody before its handshake is over, so any number of strangers
can hold descriptors; and it closes at the peer's half-close, while commits are under way.)

Rules that hold here:

- A connection has its slot from the moment it is accepted: the layer holds that until the handshake is over, and is
  one of those who have not said yet who they are.
- The peer's close_notify is the end of its stream. So is its FIN without one, but then the last line may be cut.
- Ours is a close_notify and a FIN. On a silent port it is a FIN alone, because senders that never read look for that at
  the socket (rsyslog), and an alert before it would hide it.
- What is read is decrypted at once, so that nothing waits in the layer while reading is paused.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final

from aggregator import address
from aggregator.server.admission import Admission, Slot
from aggregator.server.credentials import Credentials, of
from aggregator.server.handshakes import HandshakeTurns
from aggregator.server.port import Port
from aggregator.wire import Failure, replies

LAST_HANDSHAKE_S: Final = 1.0
"""How long handshakes may go on when the server is stopping: whoever is in the middle of one may end it, and strangers
hold up nothing."""

LINGER_S: Final = 1.0
"""How long a client whose handshake has failed is read after our last words: closing with unread data is a reset, which
destroys them."""

READ_BYTES: Final = 1 << 18
"""As much as one read of the plain transport brings."""

SLICE_BYTES: Final = 1 << 14
"""So much is decrypted at a time: the longest record (RFC 8446, section 5.1)."""

IDLE_BYTES: Final = 1 << 16
"""How much may come without a byte of the stream in it. A KeyUpdate has 27 bytes and takes OpenSSL 30 µs."""

OWN_BYTES: Final = 1 << 16
"""How much the layer's own answers may take that wait for a peer to read them. One is 30 bytes, to a KeyUpdate, which a
true client sends once in hours."""

OWN_BYTES_S: Final = 5.0
"""How long such a peer may leave them unread."""

_HANDSHAKE_RECORD: Final = 22  # RFC 8446, section 5.1: the content type of a ClientHello's record


class Stage(Enum):
    """How far a connection has come."""

    NEW = auto()  # it has not sent a byte
    HANDSHAKE = auto()
    OPEN = auto()
    FAILED = auto()  # its last words are out, and what it still sends is dropped


class TlsLayer(asyncio.Protocol):
    """One connection to a TLS port: the protocol of the plain transport, and what a ``TlsTransport`` stands on.

    ``on_open`` gets the transport for the client's protocol, and returns that protocol. ``on_result`` is told how the
    handshake has ended (see ``Stats.handshake``), and why if it has failed. ``on_lost`` is called for a connection that
    ends before it is open.
    """

    def __init__(
        self,
        plain: asyncio.Transport,
        context: Callable[[], ssl.SSLContext],
        port: Port,
        turns: HandshakeTurns,
        admission: Admission,
        on_open: Callable[[TlsLayer, TlsTransport], asyncio.Protocol],
        on_result: Callable[[TlsLayer, str, str], None],
        on_lost: Callable[[TlsLayer], None],
    ) -> None:
        self._plain = plain
        self._context = context
        self._port = port
        self._turns = turns
        self._admission = admission
        self._on_open, self._on_result, self._on_lost = on_open, on_result, on_lost
        self._stage = Stage.NEW
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject  # since the first byte: until then a stranger costs little memory
        self.protocol: asyncio.Protocol
        self._paused = False  # by the protocol
        self._choked = False  # by the layer, until the peer has read its answers
        self._own_bytes = 0
        self._idle_bytes = 0
        self._ended = False  # the peer's stream
        self._end_told = False
        self._plain_ended = False
        self._half_closed = False  # by us
        self.is_cut = False
        """Whether the peer's stream has ended without a close_notify."""
        self._error: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None
        plain.set_protocol(self)

    # --- called by the server, while the layer stands for the client

    def admit(self, slot: Slot) -> None:
        """It has a slot, among those who are not known."""
        self._admission.add_pending(slot)

    def expire(self) -> None:
        """It has taken too long."""
        if self._stage is not Stage.FAILED:
            self._on_result(self, "timed_out", "it was not done in time")
            self._stage = Stage.FAILED
        self.abort()

    def renew(self) -> None:
        """It is not known yet, so other rules change nothing."""

    def disconnect(self, failure: Failure) -> None:
        """Drop it: it has done nothing yet."""
        self.abort()

    def about(self) -> dict[str, Any]:
        """What CLIENTS shows of it."""
        name = self._plain.get_extra_info("peername")
        return {
            "peer": address.join(address.unmapped(name[0]), name[1]) if name else "a client",
            "port": self._port.descriptor, "identity": None, "by": None, "tls": None, "unanswered": 0, "slowed": False,
        }  # fmt: skip

    def tick(self) -> None:
        """Nothing changes here by itself: the handshake has its deadline as a stranger."""

    def shut_down(self, failure: Failure) -> None:
        """The server is stopping: the handshake may end first, if that is soon."""
        self._abort_after(LAST_HANDSHAKE_S)

    def abort(self) -> None:
        """Drop the connection."""
        self._plain.abort()

    def _abort_after(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()

    # --- the handshake

    def _step(self) -> None:
        if self._stage is not Stage.HANDSHAKE or self._plain.is_closing():
            return
        try:
            self._tls.do_handshake()
            credentials = self._credentials()  # raises ValueError where a name in the certificate is no text
        except ssl.SSLWantReadError:
            self._flush()
            self._plain.resume_reading()
        except ssl.SSLError as error:
            self._fail("failed", _reason(error), self._out.read())
        except ValueError as error:  # UnicodeDecodeError among them
            self._fail("failed", f"its certificate: {error}", b"")
        else:
            self._flush()
            self._stop_timer()
            self._stage = Stage.OPEN
            self._on_result(self, "ok", "")
            self.protocol = self._on_open(self, TlsTransport(self, self._plain, credentials))
            if not self._plain.is_closing():
                if not self._paused:
                    self._plain.resume_reading()
                self._read()  # what came with the last message of the handshake

    def _credentials(self) -> Credentials:
        return Credentials(of(self._plain).address, None, _names(self._tls.getpeercert()), self._tls.version())

    def _fail(self, result: str, why: str, last_words: bytes) -> None:
        self._on_result(self, result, why)
        self._stage = Stage.FAILED
        self._abort_after(LINGER_S)
        self._plain.write(last_words)
        with contextlib.suppress(OSError):  # the peer has reset the connection, and we are about to be told
            self._plain.write_eof()
        self._plain.resume_reading()

    # --- called by the event loop, for the plain transport

    def data_received(self, data: bytes) -> None:
        if self._stage is Stage.FAILED or self._ended:
            return
        if self._stage is Stage.NEW:
            if data[0] != _HANDSHAKE_RECORD:
                words = b"" if not self._port.replies else replies.encode(replies.error(replies.tls_required()))
                self._fail("not_tls", "it does not speak TLS", words)
                return
            self._stage = Stage.HANDSHAKE
            self._tls = self._context().wrap_bio(self._in, self._out, server_side=True)
        if self._stage is Stage.OPEN:
            for start in range(0, len(data), SLICE_BYTES):
                if not self._ended:
                    self._in.write(data[start : start + SLICE_BYTES])
                    self._read(SLICE_BYTES)
        else:
            self._in.write(data)
            self._plain.pause_reading()  # or it could send any amount until its turn comes
            self._turns.run(self._step)

    def eof_received(self) -> bool:
        self._plain_ended = True
        if self._stage is not Stage.OPEN:
            return False
        if not self._ended:
            self._ended = self.is_cut = True
            self._tell_end()
        return True  # keep our half open

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._stage is Stage.OPEN:
            self.protocol.connection_lost(exc or self._error)
            return
        if self._stage is not Stage.FAILED:
            self._on_result(self, "gone", "it has gone away")
        self._on_lost(self)

    def pause_writing(self) -> None:
        if self._stage is Stage.OPEN:
            self.protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._stage is Stage.OPEN:
            self.protocol.resume_writing()

    # --- in

    def _read(self, came: int = 0) -> None:
        """Decrypt all that has come, and hand it on; ``came``: so many bytes are new."""
        if self._ended:
            return
        pieces = []
        try:
            while piece := self._tls.read(READ_BYTES):
                pieces.append(piece)
            self._ended = True  # a close_notify
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # the same after ours
            self._ended = True
        except ssl.SSLError as error:
            self._error = error
        self._flush_own()
        self._idle_bytes = 0 if pieces else self._idle_bytes + came
        if self._idle_bytes > IDLE_BYTES and not self._ended:
            self._error = self._error or ConnectionAbortedError("it sends records that hold nothing")
        if pieces:
            self.protocol.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._error:
            self._break_off()
        elif self._ended:
            self._tell_end()

    def _break_off(self) -> None:
        """The peer's records are no TLS any more: our alert goes out, and nothing else can."""
        self._ended = self._end_told = True
        if not self._plain.is_closing():
            self._abort_after(LINGER_S)
            self._plain.close()

    def _tell_end(self) -> None:
        if not self._paused and not self._end_told and not self._plain.is_closing():
            self._end_told = True
            self.protocol.eof_received()

    def pause(self) -> None:
        """The protocol wants nothing for now."""
        self._paused = True
        self._plain.pause_reading()

    def resume(self) -> None:
        """The protocol wants more."""
        self._paused = False
        if self._ended:
            asyncio.get_running_loop().call_soon(self._tell_end)
        if not self._choked and not self._plain_ended:
            self._plain.resume_reading()

    # --- out

    def write(self, data: bytes) -> None:
        """Encrypt and send."""
        if data and not self._half_closed and not self._plain.is_closing():
            self._tls.write(data)
            self._flush()

    def close_half(self) -> None:
        """End our half of the stream."""
        if self._half_closed or self._plain.is_closing():
            return
        if self._port.replies:
            with contextlib.suppress(ssl.SSLError):  # it wants to read the peer's close_notify
                self._tls.unwrap()
            self._flush()
        self._half_closed = True
        self._plain.write_eof()

    def _flush(self) -> int:
        data = self._out.read()
        if self._half_closed or self._plain.is_closing():
            return 0  # OpenSSL's answer to what was read since
        if data:
            self._plain.write(data)
        return len(data)

    def _flush_own(self) -> None:
        """Send what OpenSSL answers by itself, and read no further while too much of it is unread."""
        if not self._plain.get_write_buffer_size():
            self._own_bytes = 0
        self._own_bytes += self._flush()
        if self._own_bytes > OWN_BYTES and not self._choked and not self._plain.is_closing():
            self._choked = True
            self._plain.pause_reading()
            self._stop_timer()
            self._timer = asyncio.get_running_loop().call_later(
                OWN_BYTES_S, self._look, self._plain.get_write_buffer_size()
            )

    def _look(self, waiting_before: int) -> None:
        waiting = self._plain.get_write_buffer_size()
        if waiting and waiting >= waiting_before:
            self.abort()
            return
        self._choked = False
        if not self._paused and not self._plain_ended and not self._plain.is_closing():
            self._plain.resume_reading()


class TlsTransport(asyncio.Transport):
    """What the client's protocol sees. Buffers and their limits are the plain transport's."""

    def __init__(self, layer: TlsLayer, plain: asyncio.Transport, credentials: Credentials) -> None:
        super().__init__()
        self._layer = layer
        self._plain = plain
        self._credentials = credentials

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "credentials":
            return self._credentials
        if name == "is_cut":
            return self._layer.is_cut
        return self._plain.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._plain.is_closing()

    def pause_reading(self) -> None:
        self._layer.pause()

    def resume_reading(self) -> None:
        self._layer.resume()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._plain.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._plain.get_write_buffer_size()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._layer.write(bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._layer.close_half()

    def close(self) -> None:
        self._layer.close_half()
        self._plain.close()

    def abort(self) -> None:
        self._plain.abort()


def _names(certificate: Any) -> tuple[str, ...]:
    """The names in a verified certificate (``SSLObject.getpeercert``), each with its kind."""
    if not certificate:
        return ()
    alternative = [f"DNS:{name}" for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"]
    parts = [part for parts in certificate.get("subject", ()) for part in parts]
    return (*alternative, *(f"CN:{name}" for kind, name in parts if kind == "commonName"))


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate: {error.verify_message}"
    return (error.reason or str(error)).replace("_", " ").lower()
