"""Strangers who begin TLS handshakes at a rate: ``python -m bench.strangers PORT RATE`` until it is terminated.

Each connects from its own address of the loopback net, sends a ClientHello, and leaves when the server has answered it.
By then the server has made its key exchange and its signature, which is nearly all of its work, and the stranger has
only copied bytes: the cheapest flood there is.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import ssl
import struct
import sys
import time
from typing import Final

ADDRESS: Final = "127.0.0.2"

MAX_OPEN: Final = 500
"""Connections at a time; the oldest is left for a new one."""

STEP_S: Final = 0.001

RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: a close is a reset, so that no port waits for two minutes to be used again."""


def client_hello() -> bytes:
    """The first bytes of a TLS client."""
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(received, sent).do_handshake()
    return sent.read()


class Strangers:
    """``begun`` and ``answered`` count handshakes."""

    def __init__(self, port: int) -> None:
        self.begun = self.answered = 0
        self._to = ("127.0.0.1", port)
        self._hello = client_hello()
        self._open: dict[int, socket.socket] = {}
        self._poll = select.epoll()

    def flood(self, rate: float, stop: list[bool]) -> None:
        """Begin ``rate`` handshakes a second until ``stop`` is not empty."""
        started = time.monotonic()
        while not stop:
            while self.begun < (time.monotonic() - started) * rate:
                self._begin()
            for descriptor, _ in self._poll.poll(STEP_S):
                self._leave(descriptor)

    def _begin(self) -> None:
        self.begun += 1
        if len(self._open) >= MAX_OPEN:
            self._leave(next(iter(self._open)))
        one = socket.socket()
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        one.bind((ADDRESS, 0))
        with contextlib.suppress(BlockingIOError):
            one.connect(self._to)
        with contextlib.suppress(OSError):  # the accept backlog is full, or the server has dropped it
            one.send(self._hello)
        self._open[one.fileno()] = one
        self._poll.register(one, select.EPOLLIN)

    def _leave(self, descriptor: int) -> None:
        with self._open.pop(descriptor) as one, contextlib.suppress(OSError):
            self.answered += bool(one.recv(1 << 16))


def main() -> None:
    stop: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    strangers = Strangers(int(sys.argv[1]))
    strangers.flood(float(sys.argv[2]), stop)
    print(strangers.begun, strangers.answered)


if __name__ == "__main__":
    main()
