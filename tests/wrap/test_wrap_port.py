"""The wrap port of a real server: what programs send by default, as bytes, is stored; the rest is named."""

from __future__ import annotations

import json
import pickle
import random
import re
import signal
import struct
from collections import Counter

import pytest

from aggregator.server.excerpt import Excerpt
from aggregator.wrap.framing import Framer
from aggregator.wrap.topic import TopicTemplate
from aggregator.wrap.wrapper import Defaults, Wrapper
from tests.harness.command_line import aggregator, assert_one_line
from tests.harness.fuzz_wrap import WRAPPED_SEEDS
from tests.harness.mutated_lines import mutated
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Json, Peer, event, exchange

T = "2026-11-28T10:00:00.123Z"
T_MS = 1795860000123


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    return start_server("--wrap-port", "0")


def send(server: ServerProcess, data: bytes) -> bytes:
    """Send, and close our half; return what the server wrote, once it has closed too and has stored everything."""
    with Peer(server.wrap_port) as peer:
        peer.send(data)
        peer.half_close()
        written = peer.raw_rest()
    wait_until(lambda: _all_is_stored(server.ask("STATS")))
    return written


def _all_is_stored(stats: Json) -> bool:
    return bool(stats["received"] == stats["unique_processed"] + stats["duplicate_dropped"])


def stored(server: ServerProcess, topic: str = "app") -> list[Json]:
    return server.listed(topic)


def payloads(server: ServerProcess, topic: str = "app") -> list[Json]:
    return [found["payload"] for found in stored(server, topic)]


def _json(**members: object) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


LOG4JS = (
    b'[{"startTime":"1","categoryName":"2","data":"3","level":"4","context":"5","pid":7},"2026-11-28T10:00:00.123Z",'
    b'"default",["6"],{"level":20000,"levelStr":"7","colour":"8"},{},"hello","INFO","green"]'
)
PINO = _json(level=30, time=T_MS, pid=7, hostname="web-1", msg="hello")
BUNYAN = _json(name="app", hostname="web-1", pid=7, level=30, msg="hello", time=T, v=0)
LOGSTASH = _json(**{"@timestamp": T, "@version": "1", "message": "hello", "host": "web-1", "path": "app.py"})
LOG4J2 = _json(instant={"epochSecond": T_MS // 1000, "nanoOfSecond": 123_000_000}, level="INFO", message="hello")
SD = b'[timeQuality tzKnown="1" isSynced="0"]'
GELF = _json(version="1.1", host="web-1", short_message="hello", timestamp=T_MS / 1000)
FLUENT_BIT = _json(date=T_MS / 1000, log="hello")
RFC_5424 = b"<13>1 2026-11-28T10:00:00.123456+00:00 web-1 app 12 - " + SD + b" hello"

DEFAULTS: dict[str, tuple[bytes, str, str]] = {
    "pino-socket": (PINO + b"\n", "line feeds", "msg"),
    "log4js tcp": (LOG4JS + b"__LOG4JS__", "__LOG4JS__", "data"),
    "log4js tcp, endMsg LF": (LOG4JS + b"\n", "line feeds", "data"),
    "log4js-logstash-tcp": (_json(**{"@timestamp": T, "message": "hello"}) + b"\n", "line feeds", "message"),
    "winston-logstash": (_json(level="info", message="hello") + b"\n", "line feeds", "message"),
    "winston3-logstash-transport": (_json(level="info", message="hello"), "JSON objects", "message"),
    "winston-syslog, eol LF": (b"<134>Nov 28 10:00:00 web-1 node[7]: hello\n", "line feeds", "message"),
    "bunyan": (BUNYAN + b"\n", "line feeds", "msg"),
    "python-logstash": (LOGSTASH + b"\n", "line feeds", "message"),
    "SysLogHandler": (b"<14>hello\0", "NUL bytes", "message"),
    "GELF": (GELF + b"\0", "NUL bytes", "short_message"),
    "structlog": (_json(event="hello", level="info", timestamp=T) + b"\n", "line feeds", "event"),
    "python-json-logger": (_json(asctime="2026-11-28 10:00:00,123", message="hello") + b"\n", "line feeds", "message"),
    "logback": (_json(**{"@timestamp": T, "@version": "1", "message": "hello"}) + b"\r\n", "line feeds", "message"),
    "log4j2": (LOG4J2 + b"\r\n", "line feeds", "message"),
    "logger -T": (RFC_5424 + b"\n", "line feeds", "message"),
    "logger -T --octet-count": (b"%d %b" % (len(RFC_5424), RFC_5424), "counted octets", "message"),
    "rsyslog": (b"<13>Nov 28 10:00:00 web-1 app: hello\n", "line feeds", "message"),
    "syslog-ng network()": (b"<13>Nov 28 10:00:00 web-1 app[12]: hello\n", "line feeds", "message"),
    "syslog-ng syslog()": (b"%d %b" % (len(RFC_5424), RFC_5424), "counted octets", "message"),
    "Fluent Bit json_lines": (FLUENT_BIT + b"\n", "line feeds", "log"),
    "Fluent Bit json_stream": (FLUENT_BIT, "JSON objects", "log"),
    "text": (b"hello\n", "line feeds", "message"),
    "text, CRLF": (b"hello\r\n", "line feeds", "message"),
}
"""One record as each program writes it by default, as seen on the wire; its framing; the field that has "hello"."""

HAVE_NO_TIME = ("winston-logstash", "winston3-logstash-transport", "SysLogHandler", "log4j2", "text", "text, CRLF")


@pytest.mark.parametrize("program", DEFAULTS)
def test_the_default_format_of_a_program_is_stored(server: ServerProcess, program: str) -> None:
    record, framing, name = DEFAULTS[program]
    assert send(server, record * 3) == b""

    found = stored(server)
    assert len(found) == 3
    for one in found:
        assert one["payload"][name] in ("hello", ["hello"])
        assert one["timestamp"].startswith("2026-11-28T10:00:00") or program in HAVE_NO_TIME
        assert one["source"] == ("web-1" if b"web-1" in record else "127.0.0.1")
    wait_until(lambda: f"framing: {framing}" in server.log)
    assert server.ask("STATS")["received"] == 3


@pytest.mark.parametrize("array", [b"[%b,%b,%b]", b"[\n%b,\n%b,\n%b"], ids=["Fluent Bit json", "without an end"])
def test_an_array_of_objects_is_each_of_them(server: ServerProcess, array: bytes) -> None:
    assert send(server, array % (FLUENT_BIT, FLUENT_BIT, FLUENT_BIT)) == b""
    assert [one["log"] for one in payloads(server)] == ["hello"] * 3
    wait_until(lambda: "framing: one JSON array" in server.log)


NO_TEXT = {
    "SocketHandler": (struct.pack(">L", 100) + pickle.dumps({"msg": "hello"}, 1), "pickles", "SysLogHandler"),
    "fluent-logger": (b"\x93\xa3app\xcei)\xb4\x80\x81\xa3msg\xa2hi", "msgpack", "Forward port"),
    "Fluent Bit tcp": (b"\x92\xd7\0i)\xb4\x80\0\0\0\0\x81\xa3log\xa2hi", "msgpack", "json_lines"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0", "gzip", "off"),
    "TLS": (b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3", "TLS", "switch it off"),
    "HTTP": (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n{}", "HTTP", "plain TCP"),
    "PROXY": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "the PROXY protocol", "switch it off"),
}


@pytest.mark.parametrize("text", ["TRACE starting up", "DELETE of user 5 failed", "PUT /x took 3 ms"])
def test_a_text_that_begins_like_a_request_is_a_text(server: ServerProcess, text: str) -> None:
    with Peer(server.wrap_port) as peer:
        peer.send(f"{text}\n".encode())
        wait_until(lambda: server.listed("app"))
    assert server.listed("app")[0]["payload"] == {"message": text}


@pytest.mark.parametrize("program", NO_TEXT)
def test_what_is_no_text_is_named_with_the_cure(server: ServerProcess, program: str) -> None:
    data, name, cure = NO_TEXT[program]
    with Peer(server.wrap_port) as peer:
        peer.send(data)
        assert peer.raw_rest() == b"", "the server closes, and writes nothing"

    pattern = re.compile(r"WARNING wrap port: 127.0.0.1:\d+: closed, because it sends (.*)\n")
    wait_until(lambda: pattern.search(server.log))
    (said,) = pattern.findall(server.log)
    assert name in said
    assert cure in said
    assert said.endswith(f": {Excerpt(data)}") or len(data) > 60
    stats = server.ask("STATS")
    assert (stats["stored_total"], stats["connections_refused"]) == (0, 1)


def test_a_valid_event_passes_unchanged_and_only_once(server: ServerProcess) -> None:
    line = event("e", topic="t", payload='{"n":1.10}', level="30")
    send(server, line * 2 + b"text\n" + line)
    exchange(server.port, line)

    assert [found["event_id"] for found in stored(server, "t")] == ["e"]
    assert payloads(server) == [{"message": "text"}]
    with Peer(server.port) as peer:
        peer.send(b"EVENT t e\n")
        assert line[:-2] + b',"seq":1,"received_at"' in peer.line()


def test_options_say_where_topic_and_id_come_from(start_server: StartServer) -> None:
    server = start_server("--wrap-port", "0", "--wrap-topic", "logs.{program|other}", "--wrap-id-field", "id")
    send(server, b'{"id":"a","program":"api"}\n' * 2 + b"Nov 28 10:00:00 web-1 cron[1]: hi\ntext\n")

    topics = {one["topic"]: one["stored"] for one in server.ask("TOPICS")["topics"]}
    assert topics == {"logs.api": 1, "logs.cron": 1, "logs.other": 1}


def test_there_is_no_such_port_unless_it_is_named(start_server: StartServer) -> None:
    assert "wrap port" not in start_server().log
    assert "wrap port" not in start_server("--wrap-port", "off").log


def test_wrong_options_are_said_in_one_line() -> None:
    assert_one_line(aggregator("--wrap-topic", "{a"), 2, "--wrap-topic", "brace", "'{a'")
    assert_one_line(aggregator("--wrap-port", "8080"), 2, "--port and --wrap-port are both 8080")


# --- nothing is dropped


def test_a_text_that_is_too_long_is_stored_in_parts(start_server: StartServer) -> None:
    server = start_server("--wrap-port", "0", "--max-line-bytes", "1000")
    text = b"<13>Nov 28 10:00:00 web-1 app: " + bytes(range(256)).replace(b"\n", b"").replace(b"\0", b"") * 10
    send(server, text + b"\nnext\n")

    *parts, last = stored(server)
    assert last["payload"] == {"message": "next"}
    assert {(part["source"], part["payload"]["cut"]["text"]) for part in parts} == {
        ("web-1", parts[0]["payload"]["cut"]["text"])
    }
    assert [part["payload"]["cut"]["more"] for part in parts] == [True, True, False]
    assert parts[0]["payload"]["program"] == "app"


def test_a_text_without_an_end_is_stored_when_its_time_is_over_and_may_go_on(start_server: StartServer) -> None:
    server = start_server("--wrap-port", "0", "--line-timeout", "1")
    with Peer(server.wrap_port) as peer:
        peer.send(b"first\nbegun")
        wait_until(lambda: len(payloads(server)) == 2)
        peer.send(b", ended\nlast\n")
        wait_until(lambda: len(payloads(server)) == 4)
    found = payloads(server)
    assert [one["message"] for one in found] == ["first", "begun", ", ended", "last"]
    assert [one.get("cut", {}).get("more") for one in found] == [None, True, False, None]


def test_a_whole_object_does_not_wait_for_the_next(server: ServerProcess) -> None:
    with Peer(server.wrap_port) as peer:
        peer.send(b'{"a":1}')
        wait_until(lambda: payloads(server) == [{"a": 1}])
        peer.send(b'{"b":2}')
        wait_until(lambda: payloads(server) == [{"a": 1}, {"b": 2}])


def test_a_reset_keeps_the_text_that_had_no_end(server: ServerProcess) -> None:
    with Peer(server.wrap_port) as peer:
        peer.send(b"first\nbegun")
        wait_until(lambda: len(payloads(server)) == 1)
        peer.reset()
        wait_until(lambda: len(payloads(server)) == 2)
    assert payloads(server)[1] == {"message": "begun"}


def test_sigterm_keeps_all_that_was_sent(server: ServerProcess) -> None:
    count = 5000
    with Peer(server.wrap_port) as peer:
        peer.send(b"".join(b'{"n":%d}\n' % n for n in range(count)) + b'{"n":%d}' % count)
        server.signal(signal.SIGTERM)
        assert peer.raw_rest() == b""
    assert server.wait() == 0
    server.restart()
    assert [one["n"] for one in payloads(server)] == list(range(count + 1))


def test_a_client_whose_texts_do_not_end_is_warned_of_once(start_server: StartServer) -> None:
    server = start_server("--wrap-port", "0", "--line-timeout", "7")
    with Peer(server.wrap_port) as peer:
        peer.send(b"\x1b[0m no end")
        wait_until(lambda: payloads(server))  # two seconds later than the warning
    assert server.stop() == 0  # and how many lines were left out is logged
    assert server.log.count("no text has ended for") == 1
    assert r'no text has ended for 5 s: "\x1b[0m no end"' in server.log


def test_many_texts_on_many_connections(server: ServerProcess) -> None:
    peers = [Peer(server.wrap_port) for _ in range(8)]
    for n in range(50):
        for k, peer in enumerate(peers):
            peer.send(b"".join(b'{"k":%d,"n":%d}\n' % (k, n * 40 + i) for i in range(40)))
    for peer in peers:
        peer.half_close()
        assert peer.raw_rest() == b""
        peer.close()
    wait_until(lambda: server.ask("STATS")["unique_processed"] == 16_000)
    found = payloads(server)
    for k in range(8):
        assert [one["n"] for one in found if one["k"] == k] == list(range(2000))


@pytest.mark.fault
def test_mutated_lines_are_stored_or_named(start_server: StartServer) -> None:
    """T63, and T28 on this port: a server stores what the parts without input or output make of the same bytes."""
    limit = 3000
    server = start_server("--wrap-port", "0", "--max-line-bytes", f"{limit}")
    random_ = random.Random(28)
    foreign = 0
    wrapped: Counter[str] = Counter()
    events: set[tuple[str, str]] = set()
    for round_ in range(40):
        stream = b"".join(
            mutated(random_, round_ * 100 + n) if random_.random() < 0.7 else random_.choice(WRAPPED_SEEDS)
            for n in range(100)
        )
        framer = Framer(limit)
        texts = framer.feed(stream) + framer.finish()
        foreign += framer.foreign is not None
        for made in Wrapper(Defaults(TopicTemplate("app"), "127.0.0.1")).wrap(texts) if texts else ():
            if made.topic == "app":
                wrapped[made.json.partition(b'"payload":')[2].decode()] += 1
            else:
                events.add((made.topic, made.event_id))
        assert send(server, stream) == b""
    stats = server.ask("STATS")
    assert stats["rejected"] == stats["errors"] == 0
    assert stats["connections_refused"] == foreign
    assert stats["unique_processed"] == wrapped.total() + len(events)
    assert len(stored(server)) == wrapped.total()
    assert server.ask("HEALTH")["health"] == "healthy"
    assert "Traceback" not in server.log
