"""A server's name, its addresses, and how they are written."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from aggregator.client import Sender, ask, connect
from aggregator.client.connect import shown
from aggregator.client.sender import SILENCE_S
from tests.harness import ROOT, wire
from tests.harness.clock import Clock
from tests.harness.polling import DEADLINE_S, until, wait_until
from tests.harness.sending import Outcome, run
from tests.harness.server_process import ServerProcess, StartServer

pytestmark = pytest.mark.timeout(180)


@contextlib.contextmanager
def listening(address: str, port: int) -> Iterator[socket.socket]:
    """A listener that accepts no connection; its backlog takes one."""
    with socket.create_server((address, port), backlog=0) as listener:
        yield listener


@contextlib.contextmanager
def full(address: str, port: int) -> Iterator[None]:
    """The same listener with a full backlog: it swallows every attempt to connect."""
    with listening(address, port) as listener, socket.create_connection((address, port)), socket.socket() as another:
        wait_until(lambda: select.select([listener], [], [], 0)[0])
        another.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            another.connect((address, port))
            pytest.skip("nothing fills a backlog here")
        yield


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name with two addresses."""

    async def resolve(_: Any, host: str, port: int, **options: Any) -> list[Any]:
        assert host == "two.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    return "two.example"


async def send_one(name: str, port: int) -> list[str]:
    """Send one event; return the troubles on the way."""
    troubles: list[str] = []
    sender = Sender(name, port, lambda *_: None, on_trouble=troubles.append)
    await sender.send(wire.event("1").strip())
    await sender.flush()
    await sender.close()
    return troubles


async def test_an_address_that_swallows_everything_does_not_keep_from_the_other(
    name: str, server: ServerProcess
) -> None:
    with full("127.0.0.2", server.port):
        assert await send_one(name, server.port) == []
        assert await ask(name, server.port, "PING", 30) == b'{"status":"ok","pong":true}'


async def test_an_address_that_refuses_does_not_either(name: str, server: ServerProcess) -> None:
    assert await send_one(name, server.port) == []


async def test_an_address_that_accepts_and_says_nothing_is_left_for_the_other(
    name: str, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "STAGGER_S", DEADLINE_S)
    clock = Clock(monkeypatch)
    troubles: list[str] = []
    with listening("127.0.0.2", server.port):
        async with Sender(name, server.port, on_trouble=troubles.append) as sender:
            await sender.send(wire.event("1").strip())
            await until(lambda: "connecting" not in sender.waits_for)
            clock.skip(SILENCE_S)
    assert troubles == [f"two.example:{server.port}: nothing heard for 10 s; trying again"]


async def test_every_reason_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = wire.free_port()
    with pytest.raises(ConnectionError, match=r"^Connection refused$"):
        await ask(name, port, "PING", 30)

    async def fail(_: Any, sock: socket.socket, address: tuple[str, int]) -> None:
        number = errno.ENETUNREACH if address[0] == "127.0.0.2" else errno.ECONNREFUSED
        raise OSError(number, "…")

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", fail)
    with pytest.raises(ConnectionError, match=r"^Network is unreachable; Connection refused$"):
        await ask(name, port, "PING", 30)


async def test_no_socket_is_left(name: str, server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "STAGGER_S", 0.0)
    made = []
    original = socket.socket

    def remember(*arguments: Any) -> socket.socket:
        made.append(original(*arguments))
        return made[-1]

    with listening("127.0.0.2", server.port):
        monkeypatch.setattr(socket, "socket", remember)
        reached = await connect.connect(name, server.port)
        reached.socket.close()
        monkeypatch.undo()
        await until(lambda: all(one.fileno() == -1 for one in made))
    assert made


def test_the_client_works_on_uvloop(server: ServerProcess) -> None:
    program = (
        "import uvloop\nfrom aggregator.client import Sender, ask\n"
        "async def main():\n"
        f"    sender = Sender('localhost', {server.port}, print)\n"
        f"    await sender.send({wire.event('1').strip()!r}, 'tag')\n"
        "    await sender.flush()\n    await sender.close()\n"
        f"    print(await ask('127.0.0.1', {server.port}, 'PING', 30))\n"
        "uvloop.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("tag stored b'")
    assert done.stdout.endswith('b\'{"status":"ok","pong":true}\'\n')


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback")
def test_ipv6_addresses_stand_in_brackets(start_server: StartServer) -> None:
    server = start_server("--host", "::1")
    arguments = [sys.executable, "-m", "aggregator", "send", "--to", f"[::1]:{server.port}", "--topic", "t"]
    done = subprocess.run(arguments, input=b"1\n", capture_output=True, cwd=ROOT, check=True)
    assert Outcome(0, done.stderr).has(sent=1, stored=1)
    port = wire.free_port()
    arguments[5] = f"[::1]:{port}"
    done = subprocess.run(
        [*arguments, "--give-up-after", "0.1"], input=b"1\n", capture_output=True, cwd=ROOT, check=False
    )
    assert done.stderr.startswith(f"aggregator: [::1]:{port}: cannot connect: Connection refused".encode())


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("::1", "[::1]:1"),
        ("[::1]", "[::1]:1"),
        ("fe80::1%eth0", "[fe80::1%eth0]:1"),
        ("127.0.0.1", "127.0.0.1:1"),
        ("a", "a:1"),
    ],
)
def test_addresses_are_shown_as_they_are_written(host: str, text: str) -> None:
    assert shown(host, 1) == text


def test_a_name_that_is_none_is_told(free_port: int) -> None:
    arguments = [sys.executable, "-m", "aggregator", "send", "--to", f"a..b:{free_port}", "--give-up-after", "0.1"]
    done = subprocess.run(arguments, input=wire.event("1"), capture_output=True, cwd=ROOT, check=False)
    assert done.stderr.startswith(f"aggregator: a..b:{free_port}: cannot connect: ".encode())
    assert Outcome(done.returncode, done.stderr).has(unanswered=1)


def test_the_first_address_is_taken_when_it_answers(server: ServerProcess) -> None:
    assert run(server.port, stdin=wire.event("1")).has(sent=1, stored=1)
