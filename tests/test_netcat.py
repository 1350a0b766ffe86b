"""The clients that every machine has, each on the port that the README names for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import wire
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess

EVENTS = wire.events("e", 2000)
IDS = [f"e-{i}" for i in range(2000)]

SENDALL_AND_CLOSE = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    connection.sendall(sys.stdin.buffer.read())
"""


def run(command: list[str], tmp_path: Path) -> bytes:
    """Run a client with all events on its standard input, from a file; return what it printed."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    events = tmp_path / "events.jsonl"
    events.write_bytes(b"".join(EVENTS))
    with events.open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.mark.parametrize(
    "client", ["nc -N 127.0.0.1 {port}", "ncat 127.0.0.1 {port}", "socat -t 30 - TCP:127.0.0.1:{port}"]
)
def test_the_acked_port_prints_every_ack(client: str, server: ServerProcess, tmp_path: Path) -> None:
    printed = run(client.format(port=server.port).split(), tmp_path)

    replies = [json.loads(line) for line in printed.splitlines()]
    assert [(reply["status"], reply["event_id"]) for reply in replies] == [("stored", event_id) for event_id in IDS]


@pytest.mark.parametrize(
    "client",
    [
        ["ncat", "--send-only", "127.0.0.1", "{port}"],
        ["socat", "-u", "-", "TCP:127.0.0.1:{port}"],
        ["bash", "-c", "cat > /dev/tcp/127.0.0.1/{port}"],
        [sys.executable, "-c", SENDALL_AND_CLOSE, "{port}"],
    ],
    ids=["ncat --send-only", "socat -u", "bash /dev/tcp", "Python sendall and close"],
)
def test_the_silent_port_takes_all_from_whoever_does_not_read(
    client: list[str], server: ServerProcess, tmp_path: Path
) -> None:
    printed = run([word.replace("{port}", str(server.silent_port)) for word in client], tmp_path)

    assert printed == b""
    wait_until(lambda: server.ask("STATS")["stored_total"] == len(IDS))
    assert list(server.stored("t")) == IDS
