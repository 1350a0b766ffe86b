"""Our own clients identify themselves by a token: over TLS, unix sockets and loopback, and nowhere else."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest

from aggregator.client import LogHandler, Sender, Subscriber, ask
from aggregator.client import connect as connecting
from aggregator.client.connect import Server, open_connection
from aggregator.client.connection import Connection
from tests.harness import identities
from tests.harness.certificates import Authority
from tests.harness.command_line import aggregator
from tests.harness.polling import until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import event

PERMISSIONS = {"publish": ["*"], "read": ["*"], "may": ["monitor"]}


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "token"


@pytest.fixture
def server(start_tls: StartServer, tmp_path: Path, token_file: Path) -> ServerProcess:
    """A server that requires a token, with a TLS port, a unix socket and a plain port."""
    token, stanza = identities.with_token("web", **PERMISSIONS)
    token_file.write_text(f"{token}\n")
    known = identities.write(tmp_path / "known", stanza)
    return start_tls("--anonymous", "none", "--identities", str(known), "--socket", str(tmp_path / "s"))


@pytest.fixture(params=["TLS", "unix socket", "loopback"])
def to(
    request: pytest.FixtureRequest, server: ServerProcess, authority: Authority, tmp_path: Path
) -> tuple[Server, tuple[str, ...]]:
    """The server as a program names it, and as a command line names it."""
    if request.param == "TLS":
        words = ("--to", f"tls:localhost:{server.tls_port}", "--ca", str(authority.certificate))
        return Server("localhost", server.tls_port, authority.trusting()), words
    if request.param == "unix socket":
        return Server(str(tmp_path / "s"), 0), ("--to", f"unix:{tmp_path}/s")
    return Server("127.0.0.1", server.port), ("--to", f"127.0.0.1:{server.port}")


def test_a_token_is_not_shown() -> None:
    assert "agg_" not in repr(Server("localhost", 6514, token="agg_secret"))


async def test_programs(to: tuple[Server, tuple[str, ...]], token_file: Path) -> None:
    where, token = to[0], token_file.read_text().strip()
    async with Sender(where.host, where.port, ssl=where.ssl, token=token) as sender:
        replies = [await sender.submit(event(f"e-{number}").rstrip()) for number in range(1000)]
        bad = await sender.store(b'{"topic":1}')
        assert (bad.status, bad.code) == ("rejected", "bad_event")
    assert all([(await reply).is_stored for reply in replies])
    subscriber = Subscriber(where.host, where.port, "t", after=0, limit=1000, ssl=where.ssl, token=token)
    async with subscriber as events:
        assert len([one async for one in events]) == 1000
    reply = json.loads(await ask(where.host, where.port, "WHOAMI", 10, ssl=where.ssl, token=token))
    assert (reply["identity"], reply["by"]) == ("web", "token")


async def test_a_log_handler(to: tuple[Server, tuple[str, ...]], token_file: Path) -> None:
    where, token = to[0], token_file.read_text().strip()
    handler = LogHandler(where.host, where.port, "app", ssl=where.ssl, token=token)
    handler.handle(logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": "hello"}))
    await asyncio.to_thread(handler.close)
    assert (handler.unanswered, handler.rejected) == (0, 0)


def test_commands(to: tuple[Server, tuple[str, ...]], token_file: Path, tmp_path: Path) -> None:
    words = (*to[1], "--token-file", str(token_file))
    log = tmp_path / "app.log"
    log.write_text("one\ntwo\n")
    done = aggregator("send", "--topic", "t", *words, str(log))
    assert (done.returncode, "stored 2," in done.stderr) == (0, True), done.stderr
    for command in (("tail", "t"), ("export", "--quiet", "t")):
        done = aggregator(*command, *words)
        assert (done.returncode, done.stdout.count("\n")) == (0, 2), done.stderr
    assert json.loads(aggregator("admin", *words, "WHOAMI").stdout)["identity"] == "web"
    environment = {"AGGREGATOR_TOKEN_FILE": str(token_file)}
    assert json.loads(aggregator("admin", *to[1], "WHOAMI", environment=environment).stdout)["identity"] == "web"


@pytest.mark.parametrize("content", ["agg_" + "a" * 52, None])
def test_who_is_not_known_keeps_its_events_and_says_why(server: ServerProcess, tmp_path: Path, content: str) -> None:
    words: tuple[str, ...] = ("--to", f"127.0.0.1:{server.port}", "--give-up-after", "1")
    if content:
        (tmp_path / "wrong").write_text(content)
        words = (*words, "--token-file", str(tmp_path / "wrong"))
    why = "auth_failed: unknown token" if content else "auth_required: authenticate first"
    log = tmp_path / "app.log"
    log.write_text("one\n")
    done = aggregator("send", "--topic", "t", *words, str(log))
    assert done.returncode == 1
    assert why in done.stderr
    assert "rejected 0" in done.stderr or "rejected" not in done.stderr
    done = aggregator("export", *words, "t")
    assert done.returncode == 1
    assert why in done.stderr


@pytest.mark.parametrize("content", ["", "two words", "agg_é", "x" * 1001, "a\nb"])
def test_a_file_without_a_token(content: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(content)
    done = aggregator("admin", "--token-file", str(tmp_path / "token"), "PING")
    assert done.returncode == 1
    assert done.stderr == f"aggregator: {tmp_path}/token (--token-file): expected a token, alone\n"


async def test_a_token_is_not_sent_in_the_open(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "_is_local", lambda reached: False)
    where = Server("127.0.0.1", server.port, None, "agg_secret")
    with pytest.raises(OSError, match="a token is sent over TLS, unix sockets and loopback only"):
        await open_connection(where, lambda: Connection(lambda replies: None, where.token))
    heard: list[str] = []
    sender = Sender("127.0.0.1", server.port, token="agg_secret", on_trouble=heard.append)
    waiting = asyncio.create_task(sender.store(event("e").rstrip()))
    await until(lambda: heard)
    assert "a token is sent over TLS" in heard[0]
    waiting.cancel()
    await sender.close()
    assert not any("agg_secret" in text for text in heard)
