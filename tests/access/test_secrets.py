"""No part of a token appears anywhere but where it has to be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aggregator.access import token
from tests.harness import ROOT, elsewhere, identities
from tests.harness.changes import clients_from_elsewhere
from tests.harness.polling import wait_until
from tests.harness.sending import Running
from tests.harness.server_process import StartServer
from tests.harness.wire import Peer, event

SHOWN = 12
"""This many characters of a token may not appear anywhere."""


def test_no_token_is_logged_stored_or_answered(start_server: StartServer, tmp_path: Path) -> None:
    good, stanza = identities.with_token("web", publish=["*"], read=["*"], may=["admin"])
    bad, plain, late, word = (token.new() for _ in range(4))
    path = identities.write(tmp_path / "identities.toml", stanza)
    server = start_server(
        "--identities", str(path), "--wrap-port", "0", "--log-level", "debug", changes=[clients_from_elsewhere]
    )
    said = []
    for source, data in [
        ("", identities.auth(good) + identities.auth(late) + b"WHOAMI\nCLIENTS\nSTATS\nHELP\n"),
        ("", identities.auth(bad)),
        (elsewhere.STRANGER, identities.auth(plain)),
        (elsewhere.STRANGER_TLS, f"{bad}\n".encode()),
        ("", b"PING\n" + identities.auth(late)),
        ("", f"{word}\nPING {word}\n{{{word}\nAUTH '{word}\nKILL {word}\n".encode()),
        ("", f"AUTH {word}{'x' * 5000}\n".encode()),
        ("", b"PING\n" + f"AUTH {word}{'x' * 5000}\nAUTH {'x' * 60} {word}\n".encode()),
    ]:
        with Peer(server.port, source=source) as peer:
            peer.send(data)
            peer.half_close()
            said.append(peer.raw_rest().decode())
    for number in (server.silent_port, server.wrap_port):
        for data in (identities.auth(good) + identities.auth(late), identities.auth(bad), f"\n{bad}\n".encode()):
            with Peer(number, source=elsewhere.STRANGER_TLS) as peer:
                peer.send(data)
                peer.half_close()
                assert peer.raw_rest() == b""
    wait_until(lambda: server.ask("STATS")["connections"] == 1)
    assert server.stop() == 0

    for one in (good, bad, plain, late, word):
        for start in (0, len(one) - SHOWN):
            part = one[start : start + SHOWN]
            assert part not in server.log
            assert not any(part in reply for reply in said if one != word), "only to whom it was sent by mistake"
            for file in server.db.parent.rglob("*"):
                wrapped = one == late  # a second AUTH on the wrap port is a text, and is stored like any text
                assert wrapped or part.encode() not in file.read_bytes(), file
    assert "(a token)" in server.log


def test_no_token_is_seen_of_our_own_sender(start_server: StartServer, tmp_path: Path) -> None:
    """It is visible neither to other users of the machine nor in what the sender writes."""
    secret, stanza = identities.with_token("web", publish=["app"], read=["*"], may=["admin"])
    path = identities.write(tmp_path / "identities.toml", stanza)
    server = start_server("--identities", str(path), "--anonymous", "none", "--log-level", "debug")
    token_file, rejects = tmp_path / "token", tmp_path / "rejects"
    token_file.write_text(secret)
    sender = Running(server.port, "--token-file", token_file, "--rejects", rejects, "-", stderr=tmp_path / "errors")
    sender.stdin.write(event("a", "app") + event("b", "db") + b"no event\n")
    sender.stdin.flush()
    wait_until(lambda: rejects.exists() and rejects.read_bytes().count(b"\n") == 2)
    process = Path("/proc") / str(sender.process.pid)
    seen = [(process / name).read_bytes() for name in ("cmdline", "environ", "comm")]
    sender.stdin.close()
    assert sender.process.wait(60) == 1
    seen += [rejects.read_bytes(), sender.errors.encode(), server.log.encode()]

    assert str(token_file).encode() in seen[0]
    assert not any(secret[:SHOWN].encode() in one or secret[-SHOWN:].encode() in one for one in seen)


def test_the_token_command_prints_what_lets_its_owner_in(start_server: StartServer, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aggregator", "token", "web"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    new, stanza = done.stdout.split("\n\n")
    assert token.is_token(new)
    assert new not in stanza
    path = tmp_path / "identities.toml"
    path.write_text(stanza.replace("publish = []", 'publish = ["web.*"]'))
    path.chmod(0o600)
    server = start_server("--identities", str(path), "--anonymous", "none")
    with Peer(server.port) as peer:
        assert peer.ask(identities.auth(new)) == {
            "status": "ok", "identity": "web", "publish": ["web.*"], "read": [], "may": [],
        }  # fmt: skip
        assert peer.ask(event("e", "web.a"))["status"] == "stored"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a b", "expected 1 to 64 of the characters"),
        ("anonymous", "is reserved for the server"),
        ('x"', "expected 1 to 64"),
    ],
)
def test_a_name_that_no_identity_may_have(name: str, why: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aggregator", "token", name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
