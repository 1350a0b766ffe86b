"""What the log says of lines that are not stored: it shows how each begins, so that its sender can be found."""

from __future__ import annotations

import re

import pytest

from aggregator.server.excerpt import SHOWN_CHARS, Excerpt
from tests.harness.command_line import aggregator
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Peer, event, exchange

LINES = [
    (b"<13>Nov 28 10:00:00 web-1 app: hello", '"<13>Nov 28 10:00:00 web-1 app: hello"'),
    (b'{"level":30,"msg":"hello"}', r'"{"level":30,"msg":"hello"}"'),
    (b"\x82\xa3\0\x1b[0m \xe2\x98\x83", r'"\x82\xa3\x00\x1b[0m ☃"'),
    (b"x" * 5000, '"' + "x" * SHOWN_CHARS + '…"'),
    (b'[{"a":1}]', '"[{"a":1}]"'),
    (b"STATS", '"STATS"'),
]


@pytest.mark.parametrize(("line", "shown"), LINES)
def test_a_refusal_on_the_silent_port_shows_the_start_of_the_line(
    start_server: StartServer, line: bytes, shown: str
) -> None:
    server = start_server("--max-line-bytes", "2000")
    with Peer(server.silent_port) as peer:
        peer.send(event("before") + line + b"\n" + event("after") * 100)
        wait_until(lambda: re.search(r"silent port: rejected line 2 .*: " + re.escape(shown) + "\n", server.log))


def test_each_of_several_lines_that_are_too_long_shows_its_own_start(start_server: StartServer) -> None:
    server = start_server("--max-line-bytes", "100", "--log-level", "debug")
    with Peer(server.silent_port) as peer:
        peer.send(b"first" * 100 + b"\n")
        wait_until(lambda: 'skipped to the end of the line: "firstfirst' in server.log)
        peer.send(b"second" * 100 + b"\nPING\n" + b"third" * 100 + b"\nshort\n")
        wait_until(lambda: "begin with {, this line with 's'; HELP lists commands: \"short\"" in server.log)


def test_a_refused_command_is_shown_as_it_was_typed(server: ServerProcess) -> None:
    replies = exchange(server.port, b"EVENTS 't x' 0\n" + event("e") * 50)
    assert replies[0]["code"] == "bad_command"
    wait_until(lambda: """: "EVENTS 't x' 0"\n""" in server.log)


@pytest.mark.parametrize("port", ["silent port", "acked port"])
@pytest.mark.parametrize(
    ("data", "hint"),
    [(b"<14>hello\0", ": its events seem to end with NUL bytes, which the wrap port takes"), (b"hello", "")],
)
def test_a_client_that_sends_no_line_feed_is_warned_of_once(
    server: ServerProcess, port: str, data: bytes, hint: str
) -> None:
    with Peer(server.silent_port if port == "silent port" else server.port) as peer:
        peer.send(data)
        shown = str(Excerpt(data))
        pattern = rf"WARNING {port}: [\d.:]+ has sent no line feed for 5 s{re.escape(hint)}: {re.escape(shown)}\n"
        wait_until(lambda: re.search(pattern, server.log), 30)
        peer.send(b"\n")


def test_a_client_that_has_ended_a_line_is_not(start_server: StartServer) -> None:
    server = start_server("--line-timeout", "7")
    with Peer(server.silent_port) as peer:
        peer.send(event("e") + b"unfinished")
        assert peer.raw_rest() == b""
    wait_until(lambda: "did not finish line 2 within 7 s" in server.log)
    assert "sent no line feed" not in server.log


def test_an_event_without_a_payload_is_stored_and_read_as_it_was_sent(server: ServerProcess) -> None:
    line = event("bare").replace(b',"payload":{}', b"")
    assert b"payload" not in line
    replies = exchange(server.port, line + line * 20 + b"EVENT t bare\n")

    assert [reply["status"] for reply in replies[:21]] == ["stored"] + ["duplicate"] * 20
    assert "payload" not in replies[21]["event"]
    for options in (["tail", "--format", "text"], ["tail", "--format", "json"], ["export", "--format", "csv"]):
        done = aggregator(*options, "--to", f"127.0.0.1:{server.port}")
        assert done.returncode == 0, done.stderr
        assert "test" in done.stdout
    assert aggregator("export", "--format", "event", "--to", f"127.0.0.1:{server.port}").stdout == line.decode()
