"""Streams with another framing, or with a forwarder's header: reported, counted, ended, and never stored."""

from __future__ import annotations

import pytest

from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Peer, event

LIMIT = 2000
EVENTS = [event(f"e{number}")[:-1] for number in range(200)]

FRAMINGS = {
    "NUL": (b"".join(one + b"\0" for one in EVENTS), "its events seem to end with NUL bytes"),
    "octet counting": (b"".join(b"%d %b" % (len(one), one) for one in EVENTS), "it seems to count octets (RFC 6587)"),
    "an endless array": (b"[" + b",".join(EVENTS), "it seems to be one endless JSON array"),
    "nothing at all": (b"".join(EVENTS), "it holds no line feed"),
}


@pytest.mark.parametrize(("stream", "words"), FRAMINGS.values(), ids=FRAMINGS)
@pytest.mark.parametrize("silent", [True, False], ids=["silent port", "acked port"])
def test_another_framing_is_named_counted_and_ended(
    start_server: StartServer, stream: bytes, words: str, silent: bool, record_figures: RecordFigures
) -> None:
    """T53: the connection ends like that of any unfinished line, and the log says how the stream seems to be framed."""
    server = start_server("--max-line-bytes", str(LIMIT), "--line-timeout", "1")
    with Peer(server.silent_port if silent else server.port) as peer:
        peer.send(stream)
        answer = peer.raw_rest()
    assert (answer == b"") is silent
    if not silent:
        assert b'"code":"too_long"' in answer
        assert b'"code":"unfinished_line"' in answer
    server.wait_for_log("within 1 s: closed")
    assert words in server.log
    stats = server.ask("STATS")
    assert stats["stored_total"] == 0
    assert stats["skipped_bytes"] >= len(stream) - LIMIT
    record_figures("another framing", skipped_bytes=stats["skipped_bytes"])


def test_each_connection_that_is_framed_so_is_told(start_server: StartServer) -> None:
    """T53: each such connection is ended; those left out of the log are counted there when the server ends."""
    server = start_server("--line-timeout", "1")
    peers = [Peer(server.silent_port) for _ in range(3)]
    for peer in peers:  # all at once, because of each kind there is a line in the log every ten seconds
        peer.send(FRAMINGS["NUL"][0])
    for peer in peers:
        assert peer.raw_rest() == b""
        peer.close()
    assert server.ask("STATS")["errors"] == 3
    assert server.stop() == 0
    assert "2 more lines like this were left out" in server.log


PROXY_HEADERS = {
    "version 1": b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 8080\r\n",
    "version 1, unknown": b"PROXY UNKNOWN\r\n",
    "version 2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\1\x7f\0\0\1\x04\xd2\x1f\x90",
}


@pytest.mark.parametrize("header", PROXY_HEADERS.values(), ids=PROXY_HEADERS)
def test_no_ack_is_one_event_early_behind_a_proxy_header(server: ServerProcess, header: bytes) -> None:
    """T54: the reply to the header would be taken for the reply to the first event, so nothing after it is read."""
    for cut in range(1, len(header)):
        with Peer(server.port) as peer:
            peer.send(header[:cut])
            peer.send(header[cut:] + event("e"))
            replies = peer.rest()
        assert [(reply["status"], reply["code"]) for reply in replies] == [("rejected", "bad_line")]
    with Peer(server.silent_port) as peer:
        peer.send(header + event("e"))
        assert peer.raw_rest() == b""
    server.wait_for_log("speaks the PROXY protocol")
    assert server.ask("STATS")["stored_total"] == 0


HALF = r"\ud83d"


def test_half_of_a_surrogate_pair_is_kept_in_payloads_and_harms_no_neighbour(server: ServerProcess) -> None:
    """T55: kept byte for byte across a kill -9; in a name, it gets only that event rejected."""
    payloads = [f'{{"m":"cut {HALF}"}}', f'{{"{HALF}":1}}', f'{{"m":["{HALF}",1e999,"\\udc00"]}}']
    good = [event(f"e{number}", payload=payload) for number, payload in enumerate(payloads)]
    bad = event("x").replace(b'"topic":"t"', b'"topic":"%b"' % HALF.encode())
    assert bad != event("x")
    batch = b"[" + b",".join(line[:-1] for line in [*good, bad, event("neighbour")]) + b"]\n"
    with Peer(server.port) as peer:
        results = peer.ask(batch)["results"]
        assert [one["status"] for one in results] == ["stored", "stored", "stored", "rejected", "stored"]
        assert results[3]["detail"].startswith("topic: half of a surrogate pair")
        assert [peer.ask(line)["status"] for line in good] == ["duplicate"] * 3
    server.kill()
    server.restart()
    wait_until(lambda: server.ask("HEALTH")["health"] == "healthy")
    with Peer(server.port) as peer:
        for number, line in enumerate(good):
            peer.send(b"EVENT t e%d\n" % number)
            assert line[:-2] in peer.line()
            assert peer.ask(line)["status"] == "duplicate"
