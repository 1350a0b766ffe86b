"""An ack counts only for the topic and the event_id that were sent, whatever is between client and server."""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.client import match
from tests.harness import wire
from tests.harness.background import in_background
from tests.harness.sending import run
from tests.harness.server_process import ServerProcess

pytestmark = pytest.mark.timeout(180)


@contextlib.contextmanager
def forwarding(port: int, header: bytes, connections: int) -> Iterator[int]:
    """A forwarder that puts a header before the stream of its first connections; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for number in itertools.count():
                try:
                    client, _ = listener.accept()
                except OSError:  # the end of the test
                    return
                in_background(partial(join, client, port, header if number < connections else b""))

        accepting = in_background(serve)
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        accepting.finish()


def join(client: socket.socket, port: int, header: bytes) -> None:
    """Pass on what each end sends to the other until one of them closes."""
    with client, socket.create_connection(("127.0.0.1", port)) as server:
        server.sendall(header)
        others = {client: server, server: client}
        with contextlib.suppress(OSError):
            while True:
                for ready in select.select(list(others), [], [])[0]:
                    if not (data := ready.recv(1 << 16)):
                        return
                    others[ready].sendall(data)


HEADERS = {
    "PROXY": b"PROXY TCP4 10.0.0.1 10.0.0.2 56324 8080\r\n",
    "an event": wire.event("somebody else's"),
    "a batch": b"[]\n",
    "two lines": b"PROXY TCP4 10.0.0.1 10.0.0.2 56324 8080\r\nsecond\n",
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_line_put_before_ours_shifts_no_ack(server: ServerProcess, tmp_path: Path, header: str) -> None:
    file = tmp_path / "events"
    file.write_bytes(b"".join(wire.events("e", 500)))
    with forwarding(server.port, HEADERS[header], connections=2) as port:
        outcome = run(port, file)
    assert outcome.code == 0
    assert outcome.counts["stored"] + outcome.counts["duplicate"] == outcome.counts["sent"] == 500
    (line,) = outcome.lines
    assert "lost count" in line
    assert {f"e-{i}" for i in range(500)} <= server.stored("t").keys()


def test_a_forwarder_that_always_does_so_ends_the_attempt(server: ServerProcess, tmp_path: Path) -> None:
    with forwarding(server.port, HEADERS["PROXY"], connections=1 << 30) as port:
        outcome = run(port, "--topic", "t", stdin=b"1\n2\n")
    assert outcome.code == 1
    assert outcome.has(unanswered=2)
    assert outcome.lines[-1].startswith(f"aggregator: 127.0.0.1:{port}: a reply to something other than what was sent")


def event(**fields: object) -> bytes:
    return orjson.dumps(fields)


LINE = event(topic="t", event_id="e", payload={"topic": "other", "event_id": "x"})


@pytest.mark.parametrize(
    ("reply", "line", "right"),
    [
        (b'{"status":"stored","seq":1,"topic":"t","event_id":"e"}', LINE, True),
        (b'{"status":"stored","seq":1,"topic":"t","event_id":"x"}', LINE, False),
        (b'{"status":"stored","seq":1,"topic":"other","event_id":"x"}', LINE, False),
        (b'{"status":"stored","seq":1,"topic":"t","event_id":"e-1"}', LINE, False),
        (b'{"status":"stored","seq":1,"topic":"t","event_id":"e"}', event(event_id="e", topic="t"), True),
        (b'{"status":"stored","seq":1,"topic":"t","event_id":"e"}', b'{"topic" : "\\u0074","event_id":"e"}', True),
        (b'{"status":"stored","seq":1,"topic":"t","event_id":"e"}', b'{"topic":"t","event_id":"e","topic":"u"}', True),
        (b'{"status":"stored","seq":1,"topic":"u","event_id":"e"}', b'{"topic":"t","event_id":"e","topic":"u"}', True),
        (b'{"status":"stored","seq":1,"topic":"t","event_id":"e"}', b'{"event_id":"e","n":1e999,"topic":"t"}', True),
        (b'{"status":"stored","seq":1,"topic":"t","event_id":"e"}', b"[" + LINE + b"]", False),
        (b'{"status":"stored","seq":1,"topic":"t"}', LINE, False),
        (b'{"status":"stored"}', LINE, False),
        (b'{"status":"stored",', LINE, False),
    ],
)
def test_acks(reply: bytes, line: bytes, right: bool) -> None:
    assert match.acks(reply, line) is right


@pytest.mark.parametrize(
    ("fields", "line", "right"),
    [
        ({"status": "rejected", "code": "bad_event", "line": 7, "topic": "t", "event_id": "e"}, LINE, True),
        ({"status": "rejected", "code": "bad_event", "line": 6, "topic": "t", "event_id": "e"}, LINE, False),
        ({"status": "rejected", "code": "bad_event", "line": 7, "topic": "t", "event_id": "x"}, LINE, False),
        ({"status": "rejected", "code": "bad_event", "line": 7}, LINE, True),
        ({"status": "rejected", "code": "bad_event", "topic": "t"}, event(topic="t", event_id=1), True),
        ({"status": "rejected", "code": "bad_event", "topic": "t"}, b'{"topic":"t","event_id":"\\ud800"}', True),
        ({"status": "rejected", "code": "bad_json", "line": 7}, b"{", True),
        ({"status": "rejected", "code": "bad_json", "line": 7}, b'{"\xff"}', True),
        ({"status": "rejected", "code": "too_deep", "line": 7}, b"[" * 9000, True),
        ({"status": "rejected", "code": "bad_line", "line": 7}, LINE, False),
        ({"status": "rejected", "code": "bad_command", "line": 7}, LINE, False),
        ({"status": "rejected", "code": "not_allowed", "line": 7}, LINE, False),
        ({"status": "rejected", "code": "of the future", "line": 7}, LINE, True),
        ({"status": "error", "code": "storage_full", "topic": "t", "event_id": "e"}, LINE, True),
        ({"status": "error", "code": "storage_full", "topic": "t", "event_id": "x"}, LINE, False),
        ({"status": "error", "code": "storage_full"}, LINE, True),
        ({"status": "batch", "results": []}, LINE, False),
        ({"status": "batch", "results": [{"topic": "t", "event_id": "e"}]}, b"[" + LINE + b"]", True),
        ({"status": "batch", "results": [{"topic": "t", "event_id": "e"}]}, b'{"events":[' + LINE + b"]}", True),
        ({"status": "batch", "results": [{"topic": "t", "event_id": "x"}]}, b"[" + LINE + b"]", False),
        ({"status": "batch", "results": [{"status": "rejected"}]}, b"[3]", True),
    ],
)
def test_answers(fields: dict[str, object], line: bytes, right: bool) -> None:
    assert match.answers(fields, line, 7) is right


NAMES = st.text(min_size=1, max_size=5, alphabet='abc"\\{}:,é\u2028😀/ ')


@given(topic=NAMES, event_id=NAMES, other=NAMES, swapped=st.booleans(), escaped=st.booleans())
def test_the_fast_way_and_the_slow_way_agree(
    topic: str, event_id: str, other: str, swapped: bool, escaped: bool
) -> None:
    names = {"event_id": event_id, "topic": topic} if swapped else {"topic": topic, "event_id": event_id}
    line = json.dumps({**names, "payload": {}}, ensure_ascii=escaped).encode()
    assert match.acks(orjson.dumps({"status": "stored", "seq": 1, "topic": topic, "event_id": event_id}), line)
    wrong = orjson.dumps({"status": "stored", "seq": 1, "topic": topic, "event_id": other})
    assert match.acks(wrong, line) is (other == event_id)


def test_no_rejection_of_a_real_server_is_taken_for_a_strangers(server: ServerProcess, tmp_path: Path) -> None:
    long = "x" * 300
    lines = [
        b"{}", b"[]", b"[{}]", b"{", b"[1,", b'{"topic":"t"}', b'{"topic":"","event_id":"e"}',
        b'{"topic":"t","event_id":7}', wire.event("\u0001"), wire.event(long), wire.event("e", topic=long),
        wire.event("e").replace(b'"e"', b'"\\ud800"'),
        wire.event("e", payload="[]"), wire.event("e", payload='{"a":' + "[" * 300 + "]" * 300 + "}"),
        wire.event("e", payload='{"a":"' + "x" * (1 << 20) + '"}'), b'{"events":[1,{}]}', b'{"events":[],"x":1}',
        b'{"\xff":1}', b"[" * 100_000, wire.event("e", payload='{"n":1e999}'), b'{"topic":"a","topic":"b"}\r',
        b"[" + wire.event("b1").strip() + b"," + wire.event(long).strip() + b"," + wire.event("b2").strip() + b"]",
    ]  # fmt: skip
    file = tmp_path / "events"
    file.write_bytes(b"\n".join(line.rstrip(b"\n") for line in lines * 3))
    outcome = run(server.port, "--rejects", tmp_path / "rejects", file)
    assert not [line for line in outcome.lines if "lost count" in line]
    assert "unanswered" not in outcome.counts
