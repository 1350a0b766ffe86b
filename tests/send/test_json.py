"""Lines that are JSON objects: the object is the payload, byte for byte."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from aggregator.client.send.wrap import JsonEvents, TextEvents
from aggregator.wire import Rejection
from tests.harness import wire
from tests.harness.sending import run
from tests.harness.server_process import ServerProcess

pytestmark = pytest.mark.timeout(180)

PINO = (
    b'{"level":30,"time":1531171074631,"pid":657,"hostname":"Davids-MBP-3.fritz.box","msg":"hello world"}\n'
    b'{"level":50,"time":1531171074632,"pid":657,"err":{"type":"Error","stack":"Error: a\\n    at b"},"msg":"a"}\n'
)
ZAP = (
    b'{"level":"info","ts":1531171074.631123,"caller":"x/y.go:1","msg":"failed","url":"http://x","attempt":3}\n'
    b'{"level":"info","ts":"2018-07-09T21:17:54.631+0200","msg":"iso"}\n'
)


@pytest.mark.parametrize(
    ("log", "field", "stamps"),
    [
        (PINO, "time", ["2018-07-09T21:17:54.631000+00:00", "2018-07-09T21:17:54.632000+00:00"]),
        (ZAP, "ts", ["2018-07-09T21:17:54.631123+00:00", "2018-07-09T21:17:54.631+02:00"]),
    ],
)
def test_the_logs_of_pino_and_zap(
    server: ServerProcess, tmp_path: Path, log: bytes, field: str, stamps: list[str]
) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(log)
    options = ["--json", "--topic", "t", "--time-field", field]
    assert run(server.port, *options, file).has(sent=2, stored=2)
    assert run(server.port, *options, file).has(sent=2, duplicate=2)
    events = server.listed("t")
    assert [event["payload"] for event in events] == [json.loads(line) for line in log.splitlines()]
    assert [event["timestamp"] for event in events] == stamps


def test_an_object_comes_back_byte_for_byte(server: ServerProcess, tmp_path: Path) -> None:
    objects = [
        '{ "n" : 1.10, "big":123456789012345678901234567890, "e": 1e999, "z":-0.0 ,"u":"\\u00e9 é","s":"\\ud83d" }',
        '{"a":[1,{"b":null}],"a":2}', "{}", '\t{"tab":1} ',
    ]  # fmt: skip
    file = tmp_path / "app.log"
    file.write_text("\n".join(objects))
    outcome = run(server.port, "--json", "--topic", "t", file)
    assert outcome.counts["stored"] >= 3  # a server may refuse half of a surrogate pair
    with wire.Peer(server.port) as peer:
        peer.send(b"EVENTS t 100\n")
        answer = peer.line()
    for one in objects[-outcome.counts["stored"] :]:
        assert b'"payload":' + one.strip().encode() + b',"seq"' in answer


def test_fields_name_what_is_taken_out(server: ServerProcess, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"log": {"id": "a", "topic": "x"}, "at": "2026-11-22T10:00:00Z"},
        {"log": {"id": "a", "topic": "x"}, "at": "later, a duplicate"},
        {"log": {"id": 17}, "at": 1532, "log.topic": "y"},
        {"log": {"id": "", "topic": ["no"]}, "at": None},
        {"log": 5},
    ]
    file = tmp_path / "app.log"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--json", "--topic", "t", "--id-field", "log.id", "--time-field", "at", "--topic-field", "log.topic"]
    assert run(server.port, *options, file).has(sent=5, stored=4, duplicate=1)
    (x,), (y,), rest = server.listed("x"), server.listed("y"), server.listed("t")
    assert (x["event_id"], x["timestamp"]) == ("a", "2026-11-22T10:00:00Z")
    assert (y["event_id"], y["timestamp"]) == ("17", "1970-01-01T00:25:32.000000+00:00")
    assert len(rest) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", event["event_id"]) for event in rest)
    assert [event["payload"] for event in (x, y, *rest)] == [lines[0], *lines[2:]]


def test_ids_from_the_lines_hold_over_files(server: ServerProcess, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f'{{"id":1,"f":"{name}"}}\n')
    options = ["--json", "--topic", "t", "--id-field", "id"]
    assert run(server.port, *options, tmp_path / "a", tmp_path / "b").has(sent=2, stored=1, duplicate=1)


def test_other_lines_are_text(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b'{"a":1}\nError: cut\n    at x\n{"a":\n[1]\n"s"\n{"\xff":1}\n\n{"a":NaN}\nnull')
    assert run(server.port, "--json", "--topic", "t", file).has(sent=9, stored=9)
    assert [event["payload"] for event in server.listed("t")] == [
        {"a": 1}, *({"message": text} for text in (
            "Error: cut", "at x", '{"a":', "[1]", '"s"', '{"\\xff":1}', '{"a":NaN}', "null",
        )),
    ]  # fmt: skip


def test_a_line_without_any_topic_is_rejected(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b'{"topic":"t"}\n{"topic":7}\n{"other":1}\ntext\n')
    outcome = run(server.port, "--json", "--topic-field", "topic", file)
    assert outcome.code == 1
    assert outcome.has(sent=4, stored=2, rejected=2)
    assert outcome.lines == [f"{file}:{n}: bad_event: no topic to take the topic from; not sent" for n in (3, 4)]
    assert len(server.listed("t")) == len(server.listed("7")) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--json"], "--json needs --topic or --topic-field"),
        (["--topic", "t", "--id-field", "id"], "--id-field, --time-field and --topic-field need --json"),
        (["--json", "--topic-field", "x", "--source", "a\nb"], "source: control character U+000A at character 2"),
    ],
)
def test_a_wrong_command_line_is_told_at_once(free_port: int, arguments: list[str], complaint: str) -> None:
    outcome = run(free_port, *arguments, stdin=b"{}\n")
    assert outcome.code == 2
    (line,) = outcome.lines
    assert complaint in line


# --- parts


def made(line: str, **options: Any) -> dict[str, Any]:
    event = JsonEvents(TextEvents("t", "s"), **options).wrap(line.encode(), "made", None)
    assert not isinstance(event, Rejection)
    found: dict[str, Any] = json.loads(event)
    return found


@pytest.mark.parametrize(
    "value",
    ["1.5", "1e3", "123456789012345678901234567890", "true", "null", "[]", "{}", '""', '"\\ud800"', "1e999"],
)
def test_what_might_lose_digits_is_no_id(value: str) -> None:
    event = made(f'{{"id":{value}}}', id_field="id")
    assert event["event_id"] in ("made", value)


@pytest.mark.parametrize("line", ['{"id":%s,"x":1e999}', '{"id":%s,"x":"\\ud800"}', '{"id":%s}'])
@pytest.mark.parametrize("number", ["0", "-7", "18446744073709551615", "00", "12"])
def test_whole_numbers_are_ids_in_any_line(line: str, number: str) -> None:
    event = JsonEvents(TextEvents("t", "s"), id_field="id").wrap((line % number).encode(), "made", None)
    assert not isinstance(event, Rejection)
    assert f'"event_id":"{"made" if number == "00" else number}"'.encode() in event


@pytest.mark.parametrize(
    ("value", "stamp"),
    [
        ("0", "1970-01-01T00:00:00.000000+00:00"),
        ("1531171074", "2018-07-09T21:17:54.000000+00:00"),
        ("1531171074.631", "2018-07-09T21:17:54.631000+00:00"),
        ("1531171074631", "2018-07-09T21:17:54.631000+00:00"),
        ("1531171074631123", "2018-07-09T21:17:54.631123+00:00"),
        ("1531171074631123456", "2018-07-09T21:17:54.631123+00:00"),
        ('"2018-07-09T21:17:54.6Z"', "2018-07-09T21:17:54.6Z"),
        ('"2018-07-09T21:17:54.631+0200"', "2018-07-09T21:17:54.631+02:00"),
    ],
)
def test_times(value: str, stamp: str) -> None:
    assert made(f'{{"at":{value}}}', time_field="at")["timestamp"] == stamp


@pytest.mark.parametrize("value", ["-1", "1e300", "1e999", '"yesterday"', "true", "null", "99999999999999999999999"])
def test_what_is_no_time_leaves_the_time_of_sending(value: str) -> None:
    assert made(f'{{"at":{value}}}', time_field="at")["timestamp"].startswith("20")


def test_a_name_with_dots_is_looked_for_as_it_is_and_then_as_a_path() -> None:
    assert made('{"a.b":"1","a":{"b":"2"}}', id_field="a.b")["event_id"] == "1"
    assert made('{"a":{"b":"2"}}', id_field="a.b")["event_id"] == "2"
    assert made('{"a":{"b":"2"}}', id_field="a.b.c")["event_id"] == "made"
    assert made('{"a":[]}', id_field="a.b")["event_id"] == "made"
