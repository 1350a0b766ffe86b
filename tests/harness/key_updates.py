"""A client that asks for new keys again and again and reads nothing. It uses OpenSSL's library itself, because Python
does not offer that. Run as a program, its arguments are PORT COUNT WHETHER_THE_PEER_HAS_TO_ANSWER."""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
import sys
from typing import Final

NOT_REQUESTED: Final = 0
REQUESTED: Final = 1  # SSL_KEY_UPDATE_REQUESTED: the peer has to answer with a KeyUpdate of its own

_POINTERS: Final = ("TLS_client_method", "SSL_CTX_new", "SSL_new", "BIO_s_mem", "BIO_new")


def library() -> str | None:
    """The name of OpenSSL's library on this machine."""
    return ctypes.util.find_library("ssl")


def _load() -> ctypes.CDLL:
    found = ctypes.CDLL(library())  # through it, names of libcrypto are found too
    for name in _POINTERS:
        getattr(found, name).restype = ctypes.c_void_p
    return found


class KeyUpdater:
    """A client in memory, which sends what the test tells it to."""

    def __init__(self) -> None:
        self._ssl = ssl = _load()
        pointer = ctypes.c_void_p
        self._in = pointer(ssl.BIO_new(pointer(ssl.BIO_s_mem())))
        self._out = pointer(ssl.BIO_new(pointer(ssl.BIO_s_mem())))
        self._one = pointer(ssl.SSL_new(pointer(ssl.SSL_CTX_new(pointer(ssl.TLS_client_method())))))
        ssl.SSL_set_bio(self._one, self._in, self._out)

    def shake_hands(self) -> bool:
        """Continue the handshake; return whether it is complete."""
        return bool(self._ssl.SSL_connect(self._one) == 1)

    def update_keys(self, count: int) -> None:
        """Send this many KeyUpdates that ask for no answer."""
        for _ in range(count):
            assert self._ssl.SSL_key_update(self._one, NOT_REQUESTED) == 1
            assert self._ssl.SSL_do_handshake(self._one) == 1

    def write(self, data: bytes) -> None:
        assert self._ssl.SSL_write(self._one, data, len(data)) == len(data)

    def take(self) -> bytes:
        """The bytes that it has to send."""
        buffer = ctypes.create_string_buffer(1 << 20)
        size = self._ssl.BIO_read(self._out, buffer, len(buffer))
        return buffer.raw[: max(0, size)]

    def give(self, data: bytes) -> None:
        """Give it these bytes to read."""
        self._ssl.BIO_write(self._in, data, len(data))


def main(port: int, count: int, kind: int) -> None:
    """Ask for new keys until that fails; print how often it succeeded."""
    ssl = _load()
    method = ctypes.c_void_p(ssl.TLS_client_method())
    one = ctypes.c_void_p(ssl.SSL_new(ctypes.c_void_p(ssl.SSL_CTX_new(method))))
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        plain.connect(("127.0.0.1", port))
        ssl.SSL_set_fd(one, plain.fileno())
        assert ssl.SSL_connect(one) == 1
        print("connected", flush=True)
        done = 0
        while done < count and ssl.SSL_key_update(one, kind) == 1 and ssl.SSL_do_handshake(one) == 1:
            done += 1
        print(done, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
