"""One command, one answer."""

from __future__ import annotations

import asyncio
import contextlib

from aggregator.client.connect import connect
from aggregator.client.reply import MAX_REPLY_BYTES, NotOurProtocol, reason, shorten


async def ask(host: str, port: int, command: str, timeout_s: float) -> bytes:
    """Send one admin command; return the reply as it came, a line of JSON without its LF.

    Not decoded, because most decoders lose digits of large numbers. Raises OSError and NotOurProtocol.
    """
    if not command.strip() or "\n" in command:
        raise ValueError("expected one command on one line")
    try:
        async with asyncio.timeout(timeout_s):
            reply = await _exchange(host, port, command.encode() + b"\n")
    except TimeoutError:
        raise TimeoutError(f"no reply within {timeout_s:g} s") from None
    except OSError as error:
        raise ConnectionError(reason(error)) from error
    if not reply.startswith(b'{"status":"'):
        raise NotOurProtocol(f"expected an aggregator's reply, got {shorten(reply)}")
    return reply.rstrip(b"\n")


async def _exchange(host: str, port: int, line: bytes) -> bytes:
    reached = await connect(host, port)
    reader, writer = await asyncio.open_connection(sock=reached.socket, limit=MAX_REPLY_BYTES)
    try:
        writer.write(line)
        with contextlib.suppress(OSError):  # whoever has closed already may have said why
            writer.write_eof()
        reply = await reader.readline()
    except ValueError:
        raise NotOurProtocol(f"a reply longer than {MAX_REPLY_BYTES} bytes") from None
    finally:
        writer.transport.abort()
    if not reply:
        raise ConnectionError("closed without a reply")
    return reply
