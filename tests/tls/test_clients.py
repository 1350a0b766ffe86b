"""Real clients over TLS, each on the port that README.md names for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aggregator.client.reply import Unknown, final_status
from aggregator.wire import replies
from tests.harness import changes, wire
from tests.harness.certificates import Authority
from tests.harness.command_line import aggregator
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import event

EVENTS = wire.events("e", 5000)
IDS = [f"e-{i}" for i in range(5000)]

OPENSSL_VERSIONS = {"TLSv1.2": "-tls1_2", "TLSv1.3": "-tls1_3"}

SHUT_WR = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2])
version = ssl.TLSVersion[sys.argv[3].replace(".", "_")]
context.minimum_version = context.maximum_version = version
plain = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
with context.wrap_socket(plain, server_hostname="localhost") as connection:
    connection.sendall(sys.stdin.buffer.read())
    socket.socket.shutdown(connection, socket.SHUT_WR)  # the class's own would forget its keys
    while data := connection.recv(65536):
        sys.stdout.buffer.write(data)
"""

SENDALL_AND_CLOSE = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2])
plain = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
with context.wrap_socket(plain, server_hostname="localhost") as connection:
    connection.sendall(sys.stdin.buffer.read())
"""

READERS = {
    "ncat": ["ncat", "--ssl", "--ssl-verify", "--ssl-trustfile", "{ca}", "--ssl-servername", "localhost",
             "127.0.0.1", "{port}"],
    "socat": ["socat", "-t", "30", "-", "OPENSSL:127.0.0.1:{port},cafile={ca},commonname=localhost,"
              "openssl-min-proto-version={version},openssl-max-proto-version={version}"],
    "openssl s_client and QUIT": ["openssl", "s_client", "-quiet", "-CAfile", "{ca}", "-verify_return_error",
                                  "-connect", "127.0.0.1:{port}", "{flag}"],
    "Python SHUT_WR": [sys.executable, "-c", SHUT_WR, "{port}", "{ca}", "{version}"],
}  # fmt: skip

WRITERS = {
    "ncat --send-only": ["ncat", "--ssl", "--send-only", "127.0.0.1", "{port}"],
    "socat -u": ["socat", "-u", "-", "OPENSSL:127.0.0.1:{port},cafile={ca},commonname=localhost"],
    "Python sendall and close": [sys.executable, "-c", SENDALL_AND_CLOSE, "{port}", "{ca}"],
}


def run(command: list[str], port: int, authority: Authority, version: str, data: bytes, folder: Path) -> bytes:
    """Run a client with these bytes in a file as its standard input; return what it printed."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    replacements = {"{port}": str(port), "{ca}": str(authority.certificate), "{version}": version,
                    "{flag}": OPENSSL_VERSIONS[version]}  # fmt: skip
    words = list(command)
    for shown, here in replacements.items():
        words = [word.replace(shown, here) for word in words]
    file = folder / "events.jsonl"
    file.write_bytes(data)
    with file.open("rb") as events:
        done = subprocess.run(words, stdin=events, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.netcat
@pytest.mark.parametrize("version", OPENSSL_VERSIONS)
@pytest.mark.parametrize("client", READERS)
def test_every_ack_is_printed(
    client: str, version: str, tls_server: ServerProcess, authority: Authority, tmp_path: Path
) -> None:
    if client == "ncat" and version == "TLSv1.2":
        pytest.skip("ncat has no option for the version")
    data = b"".join(EVENTS) + (b"QUIT\n" if "QUIT" in client else b"")
    printed = run(READERS[client], tls_server.tls_port, authority, version, data, tmp_path)
    acks = [json.loads(line) for line in printed.splitlines()]
    assert [(one["status"], one["event_id"]) for one in acks[:5000]] == [("stored", one) for one in IDS]


@pytest.mark.netcat
@pytest.mark.parametrize("client", WRITERS)
def test_a_client_that_only_writes_loses_nothing(
    client: str, start_tls: StartServer, authority: Authority, tmp_path: Path
) -> None:
    count = 20_000
    server = start_tls(changes=[changes.slow_to_accept_tls])
    printed = run(
        WRITERS[client], server.tls_silent_port, authority, "TLSv1.3", b"".join(wire.events("e", count)), tmp_path
    )
    assert printed == b""
    wait_until(lambda: server.ask("STATS")["stored_total"] == count)


@pytest.mark.netcat
def test_with_session_tickets_it_would_lose(start_tls: StartServer, authority: Authority, tmp_path: Path) -> None:
    """The control: the test before this one passes because there are no session tickets."""
    count = 20_000
    server = start_tls(changes=[changes.slow_to_accept_tls, changes.with_session_tickets])
    data = b"".join(wire.events("e", count))
    run(WRITERS["Python sendall and close"], server.tls_silent_port, authority, "TLSv1.3", data, tmp_path)
    wait_until(lambda: server.ask("STATS")["connections"] == 1)
    assert server.ask("STATS")["stored_total"] < count


# --- our own


def test_every_command_over_tls(tls_server: ServerProcess, authority: Authority, tmp_path: Path) -> None:
    to = ("--to", f"tls:localhost:{tls_server.tls_port}", "--ca", str(authority.certificate))
    log = tmp_path / "app.log"
    log.write_text("".join(f"line {i}\n" for i in range(5000)))
    assert aggregator("send", "--topic", "t", *to, str(log)).returncode == 0
    assert tls_server.ask("STATS")["stored_total"] == 5000
    for words in (("admin", *to, "PING"), ("tail", "-n", "2", *to, "t"), ("export", "--quiet", *to, "t")):
        done = aggregator(*words)
        assert (done.returncode, done.stderr) == (0, "")
    exported = aggregator("export", "--quiet", *to, "t").stdout.splitlines()
    assert [json.loads(line)["payload"]["message"] for line in exported] == log.read_text().splitlines()


def test_a_client_knows_that_a_port_that_speaks_tls_takes_no_more() -> None:
    said = replies.encode(replies.error(replies.tls_required()))
    with pytest.raises(Unknown) as caught:
        final_status(said, event("e"), 1)
    assert caught.value.ends_connection


def test_what_is_wrong_with_the_other_side_is_one_clear_line(
    tls_server: ServerProcess, authority: Authority, foreign: Authority
) -> None:
    port = tls_server.tls_port
    for to, ca, why in (
        (f"tls:localhost:{port}", foreign.certificate, "its certificate is not trusted: "),
        (f"tls:127.0.0.2:{port}", authority.certificate, "Connection refused"),
        (f"tls:localhost:{tls_server.port}", authority.certificate, "TLS: tlsv1 alert protocol version"),
        (f"tls:localhost:{port}", Path("/nope"), "/nope: No such file or directory"),
        (f"tls:localhost:{port}", Path(__file__), f"cannot use {__file__}: "),
    ):
        done = aggregator("admin", "--to", to, "--ca", str(ca), "PING")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("aggregator: ")
        assert why in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1
    done = aggregator("admin", "--to", f"localhost:{port}", "PING")
    assert (done.returncode, done.stdout) == (
        1,
        '{"status":"error","code":"tls_required","detail":"this port speaks TLS"}\n',
    )
    for words in (("--to", "localhost:80", "--ca", "x"), ("--to", "tls:localhost"), ("--to", "unix:"), ("--to", "x")):
        assert aggregator("admin", *words, "PING").returncode == 2
