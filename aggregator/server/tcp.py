"""What the kernel knows of a client that only reads.

Such a client may be silent for ever, and its half may be closed. Then the server does not see a reset by reading. While
data is on its way to a client that has vanished, keepalive waits for the retransmissions to end: by default for a
quarter of an hour.
"""

from __future__ import annotations

import select
import socket
import struct
from typing import Final

SILENT_MS: Final = 120_000
"""How long data on its way may stay without any acknowledgement: as long as keepalive takes for an idle client. A
client whose window is closed has nothing on its way, and may stay."""

_TCP_CLOSE: Final = 7
_INFO: Final = struct.Struct("=B23xI28xI")  # of the kernel's tcp_info: tcpi_state, tcpi_unacked, tcpi_last_ack_recv


def is_gone(sock: socket.socket) -> bool:
    """Whether the client has reset the connection, or has vanished."""
    if sock.family == socket.AF_UNIX:
        poll = select.poll()
        poll.register(sock.fileno(), 0)  # POLLHUP: it has closed both halves
        return bool(poll.poll(0))
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except OSError:  # no TCP, or closed
        return False
    if len(info) < _INFO.size:
        return False
    state, unacked, last_ack_recv_ms = _INFO.unpack(info)
    return bool(state == _TCP_CLOSE or (unacked and last_ack_recv_ms > SILENT_MS))
