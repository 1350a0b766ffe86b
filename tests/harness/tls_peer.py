"""A client of a TLS port that decides each of its steps: when it reads, and how it ends."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from types import TracebackType

from tests.harness.wire import TIMEOUT_S, Json


class TlsPeer:
    """One TLS connection, on an SSLObject, because Python's SSLSocket cannot close only its own half."""

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext,
        name: str = "localhost",
        receive_buffer: int | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(TIMEOUT_S)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name, session=session)
        self._read = b""
        self.closed_notify = False
        """Whether the server has sent a close_notify."""
        self.ended = False
        """Whether the server has closed its half."""
        try:
            self.socket.connect(("127.0.0.1", port))
            self._handshake()
        except BaseException:
            with contextlib.suppress(OSError):
                self._flush()  # tells the server why
            self.socket.close()
            raise

    def _handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
        self._flush()

    def _flush(self) -> None:
        if data := self._out.read():
            self.socket.sendall(data)

    def _fill(self) -> None:
        if data := self.socket.recv(1 << 16):
            self._in.write(data)
        elif not self.tls.version():
            raise ConnectionResetError("the server has closed the connection")
        else:  # OpenSSL is not told: it would write nothing any more
            self.ended = True

    def send(self, data: bytes) -> None:
        if data:
            self.tls.write(data)
        self._flush()

    def _more(self) -> bool:
        """Read more; return whether there is any."""
        while True:
            try:
                data = self.tls.read(1 << 16)
            except ssl.SSLWantReadError:
                if self.ended:
                    return False
                self._fill()
            except ssl.SSLZeroReturnError:  # the server's close_notify, after ours
                self.closed_notify = True
                return False
            else:
                self._read += data
                self.closed_notify = not data
                return bool(data)

    def line(self) -> bytes:
        """The next reply line, byte for byte."""
        while b"\n" not in self._read:
            assert self._more(), f"the connection ended with {self._read!r}"
        line, _, self._read = self._read.partition(b"\n")
        return line + b"\n"

    def reply(self) -> Json:
        return json.loads(self.line())

    def ask(self, line: bytes) -> Json:
        self.send(line)
        return self.reply()

    def raw_rest(self) -> bytes:
        """Everything that comes until the server closes."""
        while self._more():
            pass
        rest, self._read = self._read, b""
        return rest

    def rest(self) -> list[Json]:
        return [json.loads(line) for line in self.raw_rest().splitlines()]

    def close_notify(self) -> None:
        """End our half as TLS requires, without a FIN."""
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self._flush()

    def fin(self) -> None:
        """End our half of the TCP connection."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> TlsPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def exchange(port: int, context: ssl.SSLContext, data: bytes) -> list[Json]:
    """Send everything, end our half properly, return every reply."""
    with TlsPeer(port, context) as peer:
        peer.send(data)
        peer.close_notify()
        peer.fin()
        return peer.rest()
