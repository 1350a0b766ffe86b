"""One command, one answer."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final

from aggregator.client.connect import Server, open_connection
from aggregator.client.connection import NotKnown, auth_line, take_auth_reply
from aggregator.client.reply import MAX_REPLY_BYTES, NotOurProtocol, reason, shorten

QUIT: Final = b"QUIT\n"


async def ask(
    host: str,
    port: int,
    command: str,
    timeout_s: float,
    *,
    ssl: ssl.SSLContext | None = None,
    token: str | None = None,
) -> bytes:
    """Send one admin command; return the reply as it came, a line of JSON without its LF.

    The reply is not decoded, because most decoders lose digits of large numbers. ``host``, ``ssl`` and ``token`` are as
    in ``Sender``. Raises OSError and NotOurProtocol.
    """
    if not command.strip() or "\n" in command:
        raise ValueError("expected one command on one line")
    try:
        async with asyncio.timeout(timeout_s):
            reply = await _exchange(Server(host, port, ssl, token), command.encode() + b"\n")
    except TimeoutError:
        raise TimeoutError(f"no reply within {timeout_s:g} s") from None
    except OSError as error:
        raise ConnectionError(reason(error)) from error
    if not reply.startswith(b'{"status":"'):
        raise NotOurProtocol(f"expected an aggregator's reply, got {shorten(reply)}")
    return reply.rstrip(b"\n")


async def _exchange(server: Server, line: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(MAX_REPLY_BYTES, loop)
    _, transport, _ = await open_connection(server, lambda: asyncio.StreamReaderProtocol(reader, loop=loop))
    try:
        if server.token:
            transport.write(auth_line(server.token))
        transport.write(line)
        if server.ssl:
            transport.write(QUIT)  # with TLS, our half of the stream cannot be closed alone here
        else:
            with contextlib.suppress(OSError):  # a server that has already closed may have said why
                transport.write_eof()
        if server.token:
            take_auth_reply(await reader.readline())
        reply = await reader.readline()
    except ValueError:
        raise NotOurProtocol(f"a reply longer than {MAX_REPLY_BYTES} bytes") from None
    except NotKnown as error:
        raise ConnectionError(str(error)) from error
    finally:
        transport.abort()
    if not reply:
        raise ConnectionError("closed without a reply")
    return reply
