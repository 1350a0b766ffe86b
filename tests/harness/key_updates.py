"""A client that asks for new keys again and again and reads nothing: OpenSSL's library itself, because Python has no
name for that. Run as a program: PORT COUNT."""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
import sys
from typing import Final

REQUESTED: Final = 1  # SSL_KEY_UPDATE_REQUESTED: the peer has to answer by one of its own


def library() -> str | None:
    """OpenSSL's library of this machine."""
    return ctypes.util.find_library("ssl")


def main(port: int, count: int) -> None:
    """Ask until that fails; say how often it went well."""
    ssl = ctypes.CDLL(library())
    for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(ssl, name).restype = ctypes.c_void_p
    method = ctypes.c_void_p(ssl.TLS_client_method())
    one = ctypes.c_void_p(ssl.SSL_new(ctypes.c_void_p(ssl.SSL_CTX_new(method))))
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        plain.connect(("127.0.0.1", port))
        ssl.SSL_set_fd(one, plain.fileno())
        assert ssl.SSL_connect(one) == 1
        print("connected", flush=True)
        done = 0
        while done < count and ssl.SSL_key_update(one, REQUESTED) == 1 and ssl.SSL_do_handshake(one) == 1:
            done += 1
        print(done, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
