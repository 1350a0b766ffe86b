"""The Sender against servers that lose, refuse, fall silent and lie: every line still gets its final reply."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final

import orjson
import pytest

from aggregator.client import GaveUp, NotOurProtocol, Sender, ask, backoff
from aggregator.client import sender as product
from aggregator.wire.lines import LineSplitter
from tests.harness import wire
from tests.harness.clock import Clock
from tests.harness.polling import until
from tests.harness.server_process import ServerProcess
from tests.harness.wire import free_port

ASK_S: Final = 60.0
"""Longer than any answer takes on a busy machine."""

Script = Callable[["Accepted"], Awaitable[None]]


def status_of(status: str, line: bytes, **fields: object) -> bytes:
    event = orjson.loads(line)
    names = {name: event[name] for name in ("topic", "event_id") if name in event}
    return orjson.dumps({"status": status, **fields, **names}) + b"\n"


class Accepted:
    """A connection as the scripted server sees it, with every line that it has received."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.lines: list[bytes] = []

    async def read(self, count: int) -> list[bytes]:
        """The next lines, without LF; fewer only at the end of the stream."""
        new: list[bytes] = []
        while len(new) < count and (line := await self._reader.readline()):
            new.append(line.removesuffix(b"\n"))
            self.lines.append(new[-1])
        return new

    def reply(self, lines: Iterable[bytes], status: str = "stored", **fields: object) -> None:
        self.writer.write(b"".join(status_of(status, line, **fields) for line in lines))

    async def reply_to_all(self) -> None:
        while line := await self.read(1):
            self.reply(line)

    def reset(self) -> None:
        self.writer.transport.abort()


class ScriptedServer:
    """Runs one script for each connection; the last script serves all further connections."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self.connections: list[Accepted] = []
        self.port = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Accepted(reader, writer)
        self.connections.append(connection)
        script = self._scripts[min(len(self.connections), len(self._scripts)) - 1]
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await script(connection)
        writer.close()

    def lines(self) -> list[list[bytes]]:
        return [connection.lines for connection in self.connections]


@contextlib.asynccontextmanager
async def serving(*scripts: Script, port: int = 0) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer(*scripts)
    async with await asyncio.start_server(server.accept, "127.0.0.1", port, limit=1 << 24) as listener:
        server.port = listener.sockets[0].getsockname()[1]
        yield server
        for connection in server.connections:
            connection.reset()


class Client:
    """A Sender, and everything that it has reported."""

    def __init__(self, port: int, **options: Any) -> None:
        self.replies: list[tuple[str, str]] = []
        self.troubles: list[str] = []
        self.sender = Sender("127.0.0.1", port, self._on_reply, on_trouble=self.troubles.append, **options)

    def _on_reply(self, tag: str, status: str, reply: bytes) -> None:
        # A tag here is the id of its line, so that a reply to another line shows at once.
        assert status == "batch" or orjson.loads(reply)["event_id"] == tag
        self.replies.append((tag, status))

    async def send(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            await self.sender.send(line, orjson.loads(line)["event_id"] if line[:1] == b"{" else "batch")

    async def send_and_flush(self, lines: Iterable[bytes]) -> None:
        await self.send(lines)
        await self.sender.flush()

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.replies]


@contextlib.asynccontextmanager
async def connected(port: int, **options: Any) -> AsyncIterator[Client]:
    client = Client(port, **options)
    try:
        yield client
    finally:
        await client.sender.close()


def some_lines(count: int, prefix: str = "e") -> list[bytes]:
    return [line.rstrip(b"\n") for line in wire.events(prefix, count)]


def ids(lines: Iterable[bytes]) -> list[str]:
    return [orjson.loads(line)["event_id"] for line in lines]


# --- the ordinary case


async def test_every_line_goes_out_as_it_is_and_gets_its_own_reply() -> None:
    lines = [b'{ "event_id" : "1", "n": 1.10 }', '{"event_id":"2","ü":"\\u00e9 é"}'.encode(), b'{"event_id":"3"}\r']
    async with serving(Accepted.reply_to_all) as server, connected(server.port) as client:
        await client.send_and_flush(lines)
        assert server.lines() == [lines]
        assert client.replies == [("1", "stored"), ("2", "stored"), ("3", "stored")]
        assert client.sender.unanswered == client.sender.errors == 0
        assert client.troubles == []


async def test_every_final_status_is_passed_on() -> None:
    async def script(connection: Accepted) -> None:
        for status in ("stored", "duplicate", "rejected"):
            connection.reply(await connection.read(1), status, code="bad_event", detail="…")

    async with serving(script) as server, connected(server.port) as client:
        await client.send_and_flush(some_lines(3))
        assert client.replies == [("e-0", "stored"), ("e-1", "duplicate"), ("e-2", "rejected")]


async def test_many_lines_go_through_one_connection_in_few_writes() -> None:
    chunks = []

    class Counting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport
            self.splitter = LineSplitter(1 << 20)

        def data_received(self, data: bytes) -> None:
            chunks.append(data)
            self.transport.write(b"".join(status_of("stored", line) for line in self.splitter.feed(data) if line))

        def eof_received(self) -> None:
            self.transport.abort()

    replies = []
    listener = await asyncio.get_running_loop().create_server(Counting, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        sender = Sender("127.0.0.1", port, lambda tag, status, reply: replies.append(tag))
        lines = some_lines(20_000)
        for number, line in enumerate(lines):
            await sender.send(line, number)
        await sender.flush()
        await sender.close()
    assert replies == list(range(20_000))
    assert b"".join(chunks) == b"\n".join(lines) + b"\n"
    assert len(chunks) < 500


async def test_a_server_that_waits_for_its_replies_to_be_read_is_no_deadlock() -> None:
    async def script(connection: Accepted) -> None:
        connection.writer.transport.set_write_buffer_limits(high=0)
        while line := await connection.read(1):
            connection.reply(line, note="x" * 5000)
            await connection.writer.drain()

    async with serving(script) as server, connected(server.port) as client:
        big = [b'{"event_id":"%d","pad":"%s"}' % (i, b"y" * 5000) for i in range(5000)]
        await client.send_and_flush(big)
        assert len(client.replies) == 5000


async def test_lines_from_several_tasks_share_the_window() -> None:
    async with serving(Accepted.reply_to_all) as server, connected(server.port, window_lines=7) as client:
        await asyncio.gather(*(client.send(some_lines(50, f"task{i}")) for i in range(4)))
        await client.sender.flush()
        assert sorted(client.tags) == sorted(ids(line for i in range(4) for line in some_lines(50, f"task{i}")))


@pytest.mark.parametrize("line", [b"", b"\r", b"STATS", b" {}", b'{"a":\n1}', b"{}\n", b"\xef\xbb\xbf{}"])
async def test_what_is_not_one_event_line_is_refused_before_it_is_sent(line: bytes) -> None:
    async with serving(Accepted.reply_to_all) as server, connected(server.port) as client:
        with pytest.raises(ValueError, match="one line that starts with"):
            await client.sender.send(line)
        await client.send_and_flush(some_lines(1))
        assert server.lines() == [some_lines(1)]


# --- the window


async def test_the_window_bounds_the_lines_in_flight() -> None:
    may_reply = asyncio.Event()

    async def script(connection: Accepted) -> None:
        first = await connection.read(10)
        await may_reply.wait()
        connection.reply(first[:3])
        await connection.read(3)
        connection.reply(first[3:])
        connection.reply(connection.lines[10:])
        await connection.reply_to_all()

    async with serving(script) as server, connected(server.port, window_lines=10) as client:
        sending = asyncio.create_task(client.send(some_lines(30)))
        await until(lambda: server.connections and len(server.connections[0].lines) == 10)
        assert client.sender.unanswered == 10
        assert not sending.done()
        may_reply.set()
        await sending
        await client.sender.flush()
        assert client.tags == ids(some_lines(30))


async def test_the_window_bounds_the_bytes_in_flight_and_takes_any_single_line() -> None:
    huge = b'{"event_id":"huge","pad":"%s"}' % (b"x" * 5000)
    may_reply = asyncio.Event()

    async def script(connection: Accepted) -> None:
        connection.reply(await connection.read(1))
        huge_line = await connection.read(1)
        await may_reply.wait()
        connection.reply(huge_line)
        await connection.reply_to_all()

    async with serving(script) as server, connected(server.port, window_bytes=1000) as client:
        first, last = some_lines(2)
        await client.send_and_flush([first])
        await client.send([huge])
        sending = asyncio.create_task(client.send([last]))
        await until(lambda: server.lines() == [[first, huge]])
        assert not sending.done()
        may_reply.set()
        await sending
        await client.sender.flush()
        assert client.tags == ["e-0", "huge", "e-1"]


# --- connections that end


async def after_four_acks(connection: Accepted, end: Callable[[Accepted], None]) -> None:
    connection.reply((await connection.read(10))[:4])
    await connection.writer.drain()
    end(connection)
    await connection.read(1 << 30)


async def reset_after_four(connection: Accepted) -> None:
    await after_four_acks(connection, Accepted.reset)


async def half_close_after_four(connection: Accepted) -> None:
    await after_four_acks(connection, lambda one: one.writer.write_eof())


@pytest.mark.parametrize("script", [reset_after_four, half_close_after_four])
async def test_what_was_not_acked_goes_out_again_in_order_when_a_connection_ends(script: Script) -> None:
    lines = some_lines(10)
    async with serving(script, Accepted.reply_to_all) as server, connected(server.port) as client:
        await client.send_and_flush(lines)
        assert server.lines() == [lines, lines[4:]]
        assert client.tags == ids(lines)
        assert client.troubles == [f"127.0.0.1:{server.port}: lost the connection: closed by the server; trying again"]


async def test_a_connection_that_ends_while_nothing_waits_is_no_trouble() -> None:
    async def one_line(connection: Accepted) -> None:
        connection.reply(await connection.read(1))

    async with serving(one_line) as server, connected(server.port) as client:
        for line in some_lines(3):
            await client.send_and_flush([line])
            await until(lambda: server.connections[-1].writer.is_closing())
        assert client.tags == ids(some_lines(3))


async def test_an_outage_is_told_once_and_the_next_one_again() -> None:
    port = free_port()
    lines = some_lines(3)
    async with connected(port) as client:
        await client.send(lines[:1])
        await until(lambda: client.troubles)
        await until(lambda: client.sender._backoff.pause_s >= 0.4)  # it has grown over several attempts
        async with serving(Accepted.reply_to_all, port=port):
            await client.sender.flush()
        await client.send(lines[1:])
        await until(lambda: len(client.troubles) > 1)
        async with serving(Accepted.reply_to_all, port=port) as server:
            await client.sender.flush()
            assert server.lines() == [lines[1:]]
    assert len(client.troubles) == 2
    assert client.troubles[0] == f"127.0.0.1:{port}: cannot connect: Connection refused; trying again"
    assert client.tags == ids(lines)


async def test_pauses_grow_and_start_afresh_after_an_ack(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    class Longest(float):
        """The longest pause that chance allows. It records the pause that it is multiplied by."""

        def __rmul__(self, pause_s: float) -> float:
            chosen.append(pause_s)
            return pause_s

    monkeypatch.setattr(random, "uniform", lambda low, high: Longest(high))
    monkeypatch.setattr(backoff, "LONGEST_PAUSE_S", 0.4)
    times = []

    async def hang_up(connection: Accepted) -> None:
        times.append(asyncio.get_running_loop().time())

    async def ack_one(connection: Accepted) -> None:
        await hang_up(connection)
        connection.reply(await connection.read(1))

    async with serving(hang_up, hang_up, hang_up, hang_up, ack_one) as server, connected(server.port) as sending:
        await sending.send_and_flush(some_lines(2))
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert chosen == [0.1, 0.2, 0.4, 0.4, 0.1]
    assert all(pause > wanted - 0.01 for pause, wanted in zip(pauses, chosen, strict=True))


async def test_a_name_that_no_host_can_have_is_an_outage_like_any_other() -> None:
    troubles: list[str] = []
    sender = Sender("a..b", 1, lambda *_: None, on_trouble=troubles.append, give_up_after_s=0.5)
    await sender.send(b"{}")
    with pytest.raises(GaveUp):
        await sender.flush()
    await sender.close()
    assert len(troubles) == 1
    assert troubles[0].startswith("a..b:1: cannot connect: ")


# --- replies that are not final


async def test_a_line_answered_with_an_error_goes_out_again_on_the_same_connection() -> None:
    lines = some_lines(5)

    async def script(connection: Accepted) -> None:
        first = await connection.read(5)
        connection.reply(first[:1])
        connection.reply(first[1:4], "error", code="storage_full", detail="no space")
        connection.reply(first[4:])
        connection.reply(await connection.read(3), "duplicate")

    async with serving(script) as server, connected(server.port) as client:
        await client.send_and_flush(lines)
        assert server.lines() == [[*lines, *lines[1:4]]]
        assert client.tags == ids([lines[0], lines[4], *lines[1:4]])
        assert client.sender.errors == 3
        assert client.troubles == [f"127.0.0.1:{server.port}: storage_full: no space; trying again"]


async def test_nothing_new_is_sent_while_a_pause_after_an_error_runs() -> None:
    lines = some_lines(6)

    async def script(connection: Accepted) -> None:
        connection.reply(await connection.read(3), "error", code="storage", detail="…")
        await connection.reply_to_all()

    async with serving(script) as server, connected(server.port) as client:
        await client.send(lines[:3])
        await until(lambda: client.sender.errors == 3)
        await client.send(lines[3:])
        await client.sender.flush()
        assert server.lines() == [[*lines[:3], *lines]]
        assert client.tags == ids(lines)


@pytest.mark.parametrize("code", ["busy", "shutting_down"])
async def test_a_refused_connection_is_left_and_everything_sent_on_another(code: str) -> None:
    lines = some_lines(5)

    async def refuse(connection: Accepted) -> None:
        if code == "shutting_down":
            connection.reply(await connection.read(1))
        connection.writer.write(b'{"status":"error","code":"%s","detail":"come back"}\n' % code.encode())
        await connection.read(1 << 30)

    answered = code == "shutting_down"
    async with serving(refuse, Accepted.reply_to_all) as server, connected(server.port) as client:
        await client.send_and_flush(lines)
        assert server.lines()[1] == lines[answered:]
        assert client.tags == ids(lines)
        assert client.troubles == [f"127.0.0.1:{server.port}: {code}: come back; trying again"]


async def test_a_batch_with_an_error_in_it_goes_out_again_as_a_whole() -> None:
    batch = b'[{"event_id":"1"},{"event_id":"2"}]'
    results = [{"status": "stored"}, {"status": "error", "code": "storage_full", "detail": "no space"}]

    async def script(connection: Accepted) -> None:
        await connection.read(1)
        connection.writer.write(orjson.dumps({"status": "batch", "error": 1, "results": results}) + b"\n")
        await connection.read(1)
        connection.writer.write(b'{"status":"batch","stored":1,"duplicate":1,"rejected":0,"error":0,"results":[]}\n')

    async with serving(script) as server, connected(server.port) as client:
        await client.send_and_flush([batch])
        assert server.lines() == [[batch, batch]]
        assert client.replies == [("batch", "batch")]
        assert client.troubles == [f"127.0.0.1:{server.port}: storage_full: no space; trying again"]


async def test_a_reply_to_nothing_ends_the_connection() -> None:
    async def two_replies(connection: Accepted) -> None:
        line = await connection.read(1)
        connection.reply(line * 2)
        await connection.read(1 << 30)

    lines = some_lines(2)
    async with serving(two_replies, Accepted.reply_to_all) as server, connected(server.port) as client:
        await client.send_and_flush(lines[:1])
        await client.send_and_flush(lines[1:])
        assert server.lines() == [lines[:1], lines[1:]]


# --- giving up


@pytest.mark.parametrize(
    "garbage",
    [
        b"220 mail.example.org ESMTP\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"GET / HTTP/1.1\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46\n",
        b"\n",
        b"[]\n",
        b'{"status":"ok"}\n',
        b'{"stored":1}\n',
    ],
)
@pytest.mark.parametrize("unasked", [True, False])
async def test_a_server_of_another_protocol_ends_the_attempt(garbage: bytes, unasked: bool) -> None:
    async def script(connection: Accepted) -> None:
        if not unasked:
            await connection.read(1)
        connection.writer.write(garbage)
        await connection.read(1 << 30)

    async with serving(script) as server, connected(server.port) as client:
        await client.send(some_lines(1))
        with pytest.raises(NotOurProtocol, match="reply"):
            await client.sender.flush()
        with pytest.raises(NotOurProtocol):
            await client.send(some_lines(1))
        assert client.sender.stopped.done()
        assert client.sender.unanswered == 1


async def silent(connection: Accepted) -> None:
    await connection.read(1 << 30)


async def deaf(connection: Accepted) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("listening", [True, False])
async def test_it_gives_up_when_told_to(listening: bool) -> None:
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        if listening:
            await stack.enter_async_context(serving(silent, port=port))
        client = await stack.enter_async_context(connected(port, give_up_after_s=0.5, window_lines=2))
        with pytest.raises(GaveUp, match=r"no ack for 0.5 s; 2 lines are unanswered"):
            await client.send(some_lines(3))  # the third waits for room
        with pytest.raises(GaveUp):
            await client.sender.flush()


async def test_the_time_to_give_up_counts_only_while_something_waits_and_starts_afresh_with_each_ack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    permits = asyncio.Semaphore(0)

    async def slow(connection: Accepted) -> None:
        while line := await connection.read(1):
            await permits.acquire()
            connection.reply(line)

    async def pass_by(seconds: float) -> None:
        clock.skip(seconds)
        await asyncio.sleep(0.5)  # the sender looks at the clock more often

    async with serving(slow) as server, connected(server.port, give_up_after_s=90) as client:
        await client.send(some_lines(4)[:3])
        await until(lambda: server.lines() == [some_lines(1)])
        for count in range(1, 4):
            await pass_by(50)
            permits.release()
            await until(lambda count=count: len(client.replies) == count)  # type: ignore[misc]
        await pass_by(100)
        await client.send(some_lines(4)[3:])
        await pass_by(50)
        permits.release()
        await client.sender.flush()


async def test_a_server_that_never_replies_is_told_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "SILENCE_S", 0.3)
    async with serving(silent) as server, connected(server.port) as sending:
        await sending.send(some_lines(1))
        await until(lambda: sending.troubles)
        assert sending.troubles == [f"127.0.0.1:{server.port}: no ack for 0.3 s; is this the acked port? Waiting"]


async def test_a_connection_that_has_fallen_silent_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    lines = some_lines(2)
    async with serving(silent, Accepted.reply_to_all) as server, connected(server.port) as sending:
        await sending.send(lines)
        await until(lambda: server.lines() == [lines])
        clock.skip(product.DEAF_S)
        await sending.sender.flush()
        assert server.lines() == [lines, lines]
        assert sending.troubles == [f"127.0.0.1:{server.port}: nothing heard for 60 s; trying again"]


async def test_what_the_callers_function_raises_reaches_the_caller() -> None:
    def on_reply(tag: object, status: str, reply: bytes) -> None:
        raise LookupError(tag)

    async with serving(Accepted.reply_to_all) as server:
        sender = Sender("127.0.0.1", server.port, on_reply)
        await sender.send(some_lines(1)[0], "the tag")
        with pytest.raises(LookupError, match="the tag"):
            await sender.flush()
        await sender.close()


async def test_a_closed_sender_says_so() -> None:
    async with serving(Accepted.reply_to_all) as server, connected(server.port) as client:
        await client.send_and_flush(some_lines(1))
        await client.sender.close()
        with pytest.raises(RuntimeError, match="closed"):
            await client.send(some_lines(1))


# --- everything at once


@pytest.mark.parametrize("seed", range(8))
async def test_every_line_gets_one_final_reply_from_a_server_that_fails_in_every_way(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(backoff, "LONGEST_PAUSE_S", 0.01)
    chance = random.Random(seed)

    async def unreliable(connection: Accepted) -> None:
        while line := await connection.read(1):
            match chance.randint(0, 150):
                case 0:
                    return
                case 1:
                    connection.reset()
                case 2:
                    connection.reply(line)
                    connection.writer.write_eof()
                    return await silent(connection)
                case 3:
                    connection.writer.write(b'{"status":"error","code":"busy","detail":"full"}\n')
                case 4 | 5 | 6 | 7:
                    connection.reply(line, "error", code="storage_full", detail="…")
                case _:
                    connection.reply(line)

    async with serving(unreliable) as server, connected(server.port, window_lines=100) as sending:
        lines = some_lines(2000)
        await sending.send_and_flush(lines)
        assert sorted(sending.tags) == sorted(ids(lines))
        assert len(server.connections) > 10
        assert sending.sender.errors


# --- ask


async def test_ask_returns_the_servers_answer(server: ServerProcess) -> None:
    assert await ask("127.0.0.1", server.port, "PING", ASK_S) == b'{"status":"ok","pong":true}'
    assert b'"code":"bad_command"' in await ask("localhost", server.port, "NONSENSE", ASK_S)


async def test_ask_keeps_every_digit(server: ServerProcess) -> None:
    payload = '{"n":123456789012345678901234567890,"x":1.10}'
    wire.exchange(server.port, wire.event("1", payload=payload))
    assert payload.encode() in await ask("127.0.0.1", server.port, "EVENT t 1", ASK_S)


async def test_ask_says_what_is_wrong() -> None:
    with pytest.raises(ConnectionError, match=r"^Connection refused$"):
        await ask("127.0.0.1", free_port(), "PING", ASK_S)
    async with serving(deaf) as server:
        with pytest.raises(TimeoutError, match=r"^no reply within 0\.1 s$"):
            await ask("127.0.0.1", server.port, "PING", 0.1)

    async def hang_up(connection: Accepted) -> None:
        await connection.read(1)

    async with serving(hang_up) as server:
        with pytest.raises(ConnectionError, match=r"^closed without a reply$"):
            await ask("127.0.0.1", server.port, "PING", ASK_S)

    async def smtp(connection: Accepted) -> None:
        connection.writer.write(b"220 ESMTP\r\n")

    async with serving(smtp) as server:
        with pytest.raises(NotOurProtocol, match="220 ESMTP"):
            await ask("127.0.0.1", server.port, "PING", ASK_S)


@pytest.mark.parametrize("command", ["", "  ", "PING\nPING"])
async def test_ask_takes_one_command(command: str) -> None:
    with pytest.raises(ValueError, match="one command"):
        await ask("127.0.0.1", 1, command, ASK_S)
