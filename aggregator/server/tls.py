"""TLS as a layer between a plain transport and a client's protocol.

OpenSSL does the TLS; the plain transport does everything else. (``asyncio.start_server(ssl=…)`` reports a connection
only after its handshake, so any number of unauthenticated clients could hold descriptors unseen. It also closes the
connection at the peer's half-close, while commits are under way.)

Rules that hold here:

- The peer's stream ends with its close_notify. A FIN without a close_notify ends it too, but then the last line may be
  cut.
- We end our stream with a close_notify and a FIN. On a silent port we send a FIN alone, because senders that never read
  (rsyslog) check the socket for the FIN, and an alert before it would hide it.
- Input is decrypted even if the protocol has paused reading. The plain transport is paused until all of it is
  decrypted, so no more than one read waits in the layer.
- OpenSSL works in turns (``tls_turns``) for strangers, which are unauthenticated clients. For other clients the event
  loop does a little at once, because 27 bytes can cost 38 µs (a KeyUpdate).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
import traceback
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

from aggregator import openssl
from aggregator.server import credentials
from aggregator.server.port import Port
from aggregator.server.tls_transport import TlsTransport
from aggregator.server.tls_turns import TlsTurns
from aggregator.wire import replies

LINGER_S: Final = 1.0
"""How long the layer reads on after the last reply to a client whose handshake has failed. Closing with unread data
would send a reset, which destroys that reply."""

READ_BYTES: Final = 1 << 18
"""As much as one read of the plain transport returns."""

SLICE_BYTES: Final = 1 << 14
"""How much is decrypted at a time: the longest record (RFC 8446, section 5.1). At worst, if all of it is KeyUpdates,
that takes 23 ms."""

STRANGER_BYTES: Final = 1 << 12
"""The same for clients that are not identified yet: at worst 6 ms. Their first line is shorter."""

SLOW_S: Final = 0.005
"""After this long, the rest of one client's input gets a turn of its own. A whole read takes from 0.2 ms, in records of
16 KiB, to 2 ms, in records of 230 bytes."""

IDLE_BYTES: Final = 1 << 16
"""How much input may hold no byte of the stream: a real client sends a KeyUpdate once in hours."""

OWN_BYTES: Final = 1 << 16
"""How many bytes of the layer's own answers may wait for the peer to read them. A KeyUpdate is answered in 30 bytes."""

OWN_BYTES_S: Final = 5.0
"""How long the peer may leave them unread."""

_HANDSHAKE_RECORD: Final = 22  # RFC 8446, section 5.1: the content type of a ClientHello's record


class Stage(Enum):
    """How far a connection has come."""

    NEW = auto()  # it has not sent a byte
    HANDSHAKE = auto()
    OPEN = auto()
    FAILED = auto()  # its last reply is written, and further input is dropped


class Result(Enum):
    """How a handshake has ended. The values are the words that STATS uses."""

    OK = "ok"
    FAILED = "failed"
    NOT_TLS = "not_tls"
    TIMED_OUT = "timed_out"
    GONE = "gone"


class Owner(Protocol):
    """The object that is told the outcome of a handshake."""

    @property
    def is_stranger(self) -> bool:
        """Whether the client is not identified yet."""

    def opened(self, transport: TlsTransport) -> None:
        """The handshake has succeeded: the protocol may be connected to this transport."""

    def finished(self, result: Result, why: str) -> None:
        """The handshake has failed."""

    def broken(self, trace: str) -> None:
        """A defect of ours ends this connection."""

    def lost(self) -> None:
        """The connection has ended before its handshake succeeded."""


class TlsLayer(asyncio.Protocol):
    """One connection to a TLS port: the protocol of the plain transport, and the base of a ``TlsTransport``.

    ``protocol`` is the client's protocol. It gets the decrypted bytes once the connection is open.
    """

    def __init__(
        self,
        plain: asyncio.Transport,
        protocol: asyncio.Protocol,
        context: Callable[[], ssl.SSLContext],
        port: Port,
        turns: TlsTurns,
        owner: Owner,
    ) -> None:
        self._plain = plain
        self._protocol = protocol
        self._context = context
        self._port = port
        self._turns = turns
        self._owner = owner
        self._stage = Stage.NEW
        self._ciphertext = bytearray()  # read, and not given to OpenSSL yet
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject  # from the first byte on: until then a stranger costs little memory
        self._is_reading = True  # the plain stream, unless one of the next three is true
        self._is_queued = False  # waiting for its turn
        self._is_paused = False  # by the protocol
        self._is_choked = False  # by the layer, until the peer has read the layer's answers
        self._own_bytes = 0
        self._idle_bytes = 0
        self._ended = False  # the peer's stream
        self._end_told = False
        self._plain_ended = False
        self._half_closed = False  # by us
        self._is_lost = False
        self._lost_by: Exception | None = None
        self.is_cut = False
        """Whether the peer's stream has ended without a close_notify."""
        self._error: Exception | None = None  # what is wrong with the peer's records
        self._timer: asyncio.TimerHandle | None = None
        plain.set_protocol(self)

    # --- called by the event loop, for the plain transport

    def data_received(self, data: bytes) -> None:
        if self._stage is Stage.FAILED or self._ended:
            return
        if self._stage is Stage.NEW:
            if data[0] != _HANDSHAKE_RECORD:
                words = b"" if not self._port.replies else replies.encode(replies.error(replies.tls_required()))
                self._fail(Result.NOT_TLS, "it does not speak TLS", words)
                return
            self._stage = Stage.HANDSHAKE
            self._tls = self._context().wrap_bio(self._in, self._out, server_side=True)
        self._ciphertext += data
        if self._stage is Stage.OPEN and not self._owner.is_stranger and not self._is_queued:
            self._decrypt()
        else:
            self._wait_for_turn()

    def eof_received(self) -> bool:
        self._plain_ended = True
        if self._stage is not Stage.OPEN:
            return False
        if not self._is_queued:
            self._on_plain_eof()
        return True  # keep our half open

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost, self._lost_by = True, exc
        if not self._is_queued or self._stage is not Stage.OPEN or self._owner.is_stranger:
            self._end()

    def pause_writing(self) -> None:
        if self._stage is Stage.OPEN:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._stage is Stage.OPEN:
            self._protocol.resume_writing()

    # --- turns

    def _wait_for_turn(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            self._steer()  # pause reading: the client could send any amount before its turn
            self._turns.run(self._turn)

    def _turn(self) -> None:
        self._is_queued = False
        try:
            if self._stage is Stage.HANDSHAKE:
                self._shake_hands()
            elif self._stage is Stage.OPEN:
                self._decrypt()
        except Exception:  # a defect of ours ends this connection, and no other
            self._owner.broken(traceback.format_exc())
            self._plain.abort()

    def _steer(self) -> None:
        """Resume or pause reading from the plain transport, as the flags say."""
        wanted = not (self._is_queued or self._is_paused or self._is_choked)
        if wanted is not self._is_reading and not self._plain_ended and not self._plain.is_closing():
            self._is_reading = wanted
            (self._plain.resume_reading if wanted else self._plain.pause_reading)()

    def _feed(self, at_most: int) -> int:
        """Give OpenSSL the next bytes; return how many it got."""
        fed = self._in.write(self._ciphertext[:at_most])
        del self._ciphertext[:at_most]
        return fed

    # --- the handshake

    def _shake_hands(self) -> None:
        if self._plain.is_closing():
            return
        self._feed(STRANGER_BYTES)
        try:
            self._tls.do_handshake()
            known = credentials.over_tls(self._plain, self._tls)
        except ssl.SSLWantReadError:
            self._flush()
            if self._ciphertext:
                self._wait_for_turn()
            self._steer()
        except ssl.SSLError as error:
            resumes = "it resumes a session, so its certificate would not be checked again"
            self._fail(Result.FAILED, resumes if self._tls.session_reused else openssl.reason(error), self._out.read())
        except ValueError as error:  # a name in the certificate is no text
            self._fail(Result.FAILED, f"its certificate: {error}", b"")
        else:
            self._flush()
            self._stage = Stage.OPEN
            self._owner.opened(TlsTransport(self, self._plain, known))
            self._read()  # the bytes that came with the last message of the handshake
            self._decrypt()

    def _fail(self, result: Result, why: str, last_words: bytes) -> None:
        self._owner.finished(result, why)
        self._stage = Stage.FAILED
        self._abort_after(LINGER_S)
        self._plain.write(last_words)
        with contextlib.suppress(OSError):  # the peer has reset the connection; connection_lost follows
            self._plain.write_eof()
        self._steer()

    # --- in

    def _decrypt(self) -> None:
        """Decrypt the input, and hand it on. If that takes long, or for a stranger, the rest waits for another turn."""
        started_s = time.thread_time()
        while self._ciphertext and not self._ended:
            self._read(self._feed(STRANGER_BYTES if self._owner.is_stranger else SLICE_BYTES))
            if self._ciphertext and (self._owner.is_stranger or time.thread_time() - started_s > SLOW_S):
                self._wait_for_turn()
                return
        self._ciphertext.clear()
        if self._is_lost:
            self._end()
            return
        if self._plain_ended:
            self._on_plain_eof()
        self._steer()

    def _read(self, came: int = 0) -> None:
        """Hand on what OpenSSL has decrypted. ``came`` is how many new bytes it got."""
        if self._ended:
            return
        pieces = []
        try:
            while piece := self._tls.read(READ_BYTES):
                pieces.append(piece)
            self._ended = True  # a close_notify
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # a close_notify after ours
            self._ended = True
        except ssl.SSLError as error:
            self._error = error
        self._flush_own()
        self._idle_bytes = 0 if pieces else self._idle_bytes + came
        if self._idle_bytes > IDLE_BYTES and not self._ended:
            self._error = self._error or ConnectionAbortedError("it sends records that hold nothing")
        if pieces:
            self._protocol.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._error:
            self._break_off()
        elif self._ended:
            self._report_eof()

    def _on_plain_eof(self) -> None:
        """The plain stream has ended."""
        if not self._ended:
            self._ended = self.is_cut = True
            self._report_eof()

    def _break_off(self) -> None:
        """Close the connection, because the peer's records are wrong. Our alert is sent, and nothing else can be."""
        self._ended = self._end_told = True
        if not self._plain.is_closing():
            self._abort_after(LINGER_S)
            self._plain.close()

    def _report_eof(self) -> None:
        if not self._is_paused and not self._end_told and not self._plain.is_closing():
            self._end_told = True
            self._protocol.eof_received()

    def pause(self) -> None:
        """Stop reading: the protocol wants nothing for now."""
        self._is_paused = True
        self._steer()

    def resume(self) -> None:
        """Read on: the protocol wants more."""
        self._is_paused = False
        if self._ended:
            asyncio.get_running_loop().call_soon(self._report_eof)
        self._steer()

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
            with contextlib.suppress(ssl.SSLError):  # unwrap() wants to read the peer's close_notify
                self._tls.unwrap()
            self._flush()
        self._half_closed = True
        self._plain.write_eof()

    def _flush(self) -> int:
        data = self._out.read()
        if self._half_closed or self._plain.is_closing():
            return 0  # it is OpenSSL's answer to input since then
        if data:
            self._plain.write(data)
        return len(data)

    def _flush_own(self) -> None:
        """Send OpenSSL's own answers, and pause reading while the peer leaves too much of them unread."""
        if not self._plain.get_write_buffer_size():
            self._own_bytes = 0
        self._own_bytes += self._flush()
        if self._own_bytes > OWN_BYTES and not self._is_choked and not self._plain.is_closing():
            self._is_choked = True
            self._steer()
            self._stop_timer()
            self._timer = asyncio.get_running_loop().call_later(
                OWN_BYTES_S, self._check_own_bytes, self._plain.get_write_buffer_size()
            )

    def _check_own_bytes(self, waiting_before: int) -> None:
        waiting = self._plain.get_write_buffer_size()
        if waiting and waiting >= waiting_before:
            self._plain.abort()
            return
        self._is_choked = False
        self._steer()

    # --- the end

    def _abort_after(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._plain.abort)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        """The connection is lost, and all input has been handed on."""
        was_open = self._stage is Stage.OPEN
        self._stage = Stage.FAILED
        self._stop_timer()
        if was_open:
            self._protocol.connection_lost(self._lost_by or self._error)
        else:
            self._owner.lost()
        # Objects that refer to the layer, and large ones, would otherwise wait for the cycle collector.
        del self._protocol, self._owner, self._in, self._out
        with contextlib.suppress(AttributeError):  # there was no handshake yet
            del self._tls
