"""The handshake without a server: digests as the specification defines them."""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack
import pytest

from aggregator.wire.forward import NotForward
from aggregator.wire.forward.framing import Message, Splitter
from aggregator.wire.forward.handshake import Handshake, ack
from tests.harness.forward import forward, pack


def message_of(value: Any) -> Message:
    (message,) = Splitter(1 << 16).feed(pack(value))
    return message


def digest(*parts: bytes) -> str:
    return hashlib.sha512(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("as_text", [True, False])
def test_who_knows_the_key_is_let_in(as_text: bool) -> None:
    handshake = Handshake(b"key", "server")
    word, options = msgpack.unpackb(handshake.hello())
    assert (word, options["auth"], options["keepalive"]) == ("HELO", b"", True)
    nonce = options["nonce"]
    assert len(nonce) == 16

    ping = ["PING", "client" if as_text else b"client", b"\xff\x00", digest(b"\xff\x00", b"client", nonce, b"key")]
    pong, well = handshake.answer(message_of([*ping, "", ""]))
    assert well
    assert msgpack.unpackb(pong) == ["PONG", True, "", "server", digest(b"\xff\x00", b"server", nonce, b"key")]


@pytest.mark.parametrize("digest", ["", b"\xff", 7, "0" * 128])
def test_who_does_not_is_told_so(digest: Any) -> None:
    pong, well = Handshake(b"key", "server").answer(message_of(["PING", "client", b"", digest, "", ""]))
    assert not well
    assert msgpack.unpackb(pong) == ["PONG", False, "shared_key mismatch", "", ""]


def test_every_client_gets_a_nonce_of_its_own() -> None:
    assert Handshake(b"key", "server").hello() != Handshake(b"key", "server").hello()


@pytest.mark.parametrize("value", [["t", 1, {}], ["PING", "a", "b", "c"], ["HELO", {}, "", "", "", ""]])
def test_anything_but_a_ping_ends_it(value: Any) -> None:
    with pytest.raises(NotForward, match="before the handshake"):
        Handshake(b"key", "server").answer(message_of(value))


@pytest.mark.parametrize("chunk", ["c", b"\xff\x00", "\udcff", ""])
def test_an_ack_names_the_chunk_as_it_came(chunk: str | bytes) -> None:
    assert pack(chunk) in ack(chunk)
    assert message_of(["t", [], {"chunk": chunk}]) is not None
    assert forward("t", [])
