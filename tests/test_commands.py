"""The commands, typed by hand, on each engine; and `aggregator admin`."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import subprocess
import sys

import pytest

from aggregator.server import commands
from aggregator.server.reading import EVENTS_USAGE
from tests.harness.changes import dict_engine
from tests.harness.engines import ENGINES
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Json, Peer, event, events, exchange

pytestmark = pytest.mark.engines


@pytest.fixture(params=ENGINES)
def start_any(request: pytest.FixtureRequest, start_server: StartServer) -> StartServer:
    """Start a server on this engine."""
    changes = [dict_engine] if request.param == "dict" else []
    return lambda *options: start_server(*options, changes=changes)


@pytest.fixture
def any_server(start_any: StartServer) -> ServerProcess:
    return start_any()


def ids(listed: Json) -> list[str]:
    return [one["event_id"] for one in listed["events"]]


@pytest.mark.parametrize("word", ["PING", "ping", "Ping"])
def test_ping(server: ServerProcess, word: str) -> None:
    assert server.ask(word) == {"status": "ok", "pong": True}


def test_help_lists_every_command(server: ServerProcess) -> None:
    listed = server.ask("HELP")["commands"]

    assert [usage.split()[0] for usage in listed] == list(commands.COMMANDS)
    assert all(listed.values())


# --- STATS and HEALTH


def test_stats_count_what_happened(any_server: ServerProcess) -> None:
    exchange(any_server.port, event("a") + event("a") + event("b", topic="u") + b"%\n")
    wait_until(lambda: any_server.ask("STATS")["connections"] == 1)
    stats = any_server.ask("STATS")

    expected = {
        "received": 4, "unique_processed": 2, "duplicate_dropped": 1, "rejected": 1, "errors": 0, "queue_events": 0,
        "queue_limit": 30_000, "connections": 1, "muted": 0, "skipped_bytes": 0, "rejected_by_code": {"bad_line": 1},
    }  # fmt: skip
    assert {name: stats[name] for name in expected} == expected
    assert stats["uptime_s"] > 0
    assert 0 < stats["commit_ms"]["p50"] <= stats["commit_ms"]["p99"]
    assert stats["events_per_s"] >= 0


@pytest.mark.engines("sqlite")
def test_what_sqlite_says_of_itself(server: ServerProcess) -> None:
    exchange(server.port, event("a") + event("b", topic="u"))
    stats = server.ask("STATS")
    checks = server.ask("HEALTH")["checks"]

    assert (stats["stored_total"], stats["topics"]) == (2, 2)
    assert stats["db_bytes"] + stats["wal_bytes"] > 0
    assert set(stats["versions"]) == {"aggregator", "python", "uvloop", "orjson", "aiosqlite", "sqlite"}
    assert (checks["checkpoint"], checks["sqlite_version"]) == ("ok", stats["versions"]["sqlite"])
    assert checks["wal_bytes"] >= 0
    assert checks["checkpoint_age_s"] >= 0


def test_what_another_engine_says_of_itself(start_server: StartServer) -> None:
    server = start_server(changes=[dict_engine])
    exchange(server.port, event("a") + event("b", topic="u"))
    stats = server.ask("STATS")
    checks = server.ask("HEALTH")["checks"]

    assert stats["kept"] == 2
    assert stats["versions"]["dict"] == checks["dict_version"] == "2"
    assert (checks["room"], checks["kept"]) == ("ok", 2)
    words = json.dumps([stats, checks])
    assert not [word for word in ("wal", "checkpoint", "db_bytes", "ledger") if word in words]
    assert "2 events in memory" in (server.stop(), server.log)[1]


def test_totals_survive_a_restart_and_counts_since_the_start_do_not(server: ServerProcess) -> None:
    exchange(server.port, b"".join(events("e", 10)) + event("x", topic="u"))
    before = server.ask("TOPICS")
    server.stop()
    server.restart()

    assert server.ask("TOPICS") == before
    stats = server.ask("STATS")
    assert (stats["stored_total"], stats["topics"], stats["received"]) == (11, 2, 0)


def test_health_names_its_checks(any_server: ServerProcess) -> None:
    health = any_server.ask("HEALTH")

    assert (health["status"], health["health"]) == ("ok", "healthy")
    assert {name: health["checks"][name] for name in ("storage", "commit", "queue_events")} == {
        "storage": "ok", "commit": "ok", "queue_events": 0,
    }  # fmt: skip


# --- TOPICS, EVENTS, EVENT


def test_events_come_newest_first_and_after_a_seq_oldest_first(any_server: ServerProcess) -> None:
    exchange(any_server.port, b"".join(events("e", 25)) + event("other", topic="u"))

    newest = any_server.ask("EVENTS t")
    assert newest["topic"] == "t"
    assert ids(newest) == [f"e-{i}" for i in range(24, 14, -1)]
    assert ids(any_server.ask("EVENTS t 2")) == ["e-24", "e-23"]
    fifth = any_server.ask("EVENT t e-4")["event"]["seq"]
    assert ids(any_server.ask(f"events t 3 after {fifth}")) == ["e-5", "e-6", "e-7"]
    assert any_server.ask(f"EVENTS t AFTER {newest['events'][0]['seq']}")["events"] == []
    assert any_server.ask("EVENTS nowhere")["events"] == []
    assert len(any_server.stored("t")) == 25


def test_acks_duplicates_and_answers_agree_about_seqs(any_server: ServerProcess) -> None:
    sent = b"".join(event(f"e{i}", topic=f"topic {i % 5}") for i in range(20))
    stored, again = exchange(any_server.port, sent), exchange(any_server.port, sent)

    assert [reply["status"] for reply in stored + again] == ["stored"] * 20 + ["duplicate"] * 20
    seqs = [reply["seq"] for reply in stored]
    assert [reply["seq"] for reply in again] == seqs
    assert len(set(seqs)) == 20
    assert [any_server.ask(f"EVENT 'topic {i % 5}' e{i}")["event"]["seq"] for i in range(20)] == seqs
    assert {one["topic"]: one["last_seq"] for one in any_server.ask("TOPICS")["topics"]} == {
        f"topic {i % 5}": seqs[i] for i in range(15, 20)
    }


def test_an_event_comes_back_as_it_was_sent(any_server: ServerProcess) -> None:
    payload = '{"n":123456789012345678901234567890,"m":1.10,"z":-0.0,"text":"\\u00e9é"}'
    sent = event("e", payload=payload)
    with Peer(any_server.port) as peer:
        peer.send(sent + b"EVENT t e\nEVENTS t\n")
        seq = peer.reply()["seq"]
        for _ in range(2):
            assert sent.rstrip()[:-1] + b',"seq":%d,"received_at":"' % seq in peer.line()


def test_an_answer_is_cut_short_at_the_reply_buffer_and_says_so(start_any: StartServer) -> None:
    server = start_any("--reply-buffer-bytes", "10000")
    text = json.dumps({"x": "x" * 4000})
    exchange(server.port, b"".join(event(f"e{i}", payload=text) for i in range(5)))

    page = server.ask("EVENTS t 1000 AFTER 0")
    assert ids(page) == ["e0", "e1"]
    assert page["truncated"] is True
    assert len(server.stored("t")) == 5, "paging still finds every one"
    exchange(server.port, event("huge", payload=json.dumps({"x": "x" * 50_000})))
    assert ids(server.ask("EVENTS t 1")) == ["huge"], "an answer always holds at least one event if there is any"


@pytest.mark.parametrize(
    "topic", ["after", "AFTER", "5", "-x", "--to", "limit", "a b", '"', "'", "EVENTS", "3 AFTER 2", "#"]
)
def test_a_topic_may_be_called_anything(any_server: ServerProcess, topic: str) -> None:
    exchange(any_server.port, b"".join(event(f"e{i}", topic=topic) for i in range(5)))
    quoted = shlex.quote(topic)
    seqs = [one["seq"] for one in any_server.ask(f"EVENTS {quoted} AFTER 0")["events"]]

    assert ids(any_server.ask(f"EVENTS {quoted}")) == ["e4", "e3", "e2", "e1", "e0"]
    assert ids(any_server.ask(f"EVENTS {quoted} 3")) == ["e4", "e3", "e2"]
    assert ids(any_server.ask(f"EVENTS {quoted} AFTER {seqs[2]}")) == ["e3", "e4"]
    assert ids(any_server.ask(f"EVENTS {quoted} 1 AFTER {seqs[2]}")) == ["e3"]
    assert any_server.ask(f"EVENT {quoted} e2")["event"]["seq"] == seqs[2]
    assert [one["topic"] for one in any_server.ask("TOPICS")["topics"]] == [topic]
    assert any_server.ask(f"TOPICS AFTER {quoted}")["topics"] == []


def test_topics_are_paged_by_name(any_server: ServerProcess) -> None:
    exchange(any_server.port, b"".join(event("e", topic=f"topic {i:02}") for i in range(12)))

    first = any_server.ask("TOPICS 10")
    assert first["total"] == 12
    assert [one["topic"] for one in first["topics"]] == [f"topic {i:02}" for i in range(10)]
    rest = any_server.ask(f"TOPICS AFTER '{first['topics'][-1]['topic']}'")
    assert [one["topic"] for one in rest["topics"]] == ["topic 10", "topic 11"]
    assert any_server.ask("EVENTS 'topic 03'")["events"][0]["topic"] == "topic 03"


def test_an_event_that_is_not_there_is_null(any_server: ServerProcess) -> None:
    assert any_server.ask("EVENT t nothing") == {"status": "ok", "event": None}


def test_a_field_of_the_events_own_called_seq_does_not_break_paging(any_server: ServerProcess) -> None:
    (ack,) = exchange(any_server.port, event("a", seq="999", received_at='"never"'))
    found = any_server.ask("EVENT t a")["event"]

    assert found["seq"] == ack["seq"] != 999
    assert found["received_at"] != "never"


def test_a_command_sees_all_that_was_sent_before_it(any_server: ServerProcess) -> None:
    with Peer(any_server.port) as peer:
        for number in range(20):
            peer.send(event(f"e{number}") + b"TOPICS\n" + event(f"f{number}"))
        replies = peer.replies(60)

    for number, reply in enumerate(replies[1::3]):
        assert reply["topics"][0]["stored"] > 2 * number


# --- what is wrong with a command


@pytest.mark.parametrize(
    ("command", "detail"),
    [
        ("FOO", "unknown command FOO; HELP lists them"),
        ("PING x", "too many arguments; usage: PING"),
        ("QUIT now", "QUIT stands alone, in upper case"),
        ("EVENTS", f"a topic or pattern is missing; usage: {EVENTS_USAGE}"),
        ("TOPICS AFTER", "limit: expected a number from 1 to 1000, got 'AFTER'"),
        ("TOPICS t", "limit: expected a number from 1 to 1000, got 't'"),
        ("EVENTS t 0", "limit: expected a number from 1 to 1000, got '0'"),
        ("EVENTS t 1001", "limit: expected a number from 1 to 1000, got '1001'"),
        ("EVENTS t AFTER x", "after: expected a number from 0 to 9223372036854775807, got 'x'"),
        ("EVENTS t AFTER 1 SINCE 1m", f"AFTER and SINCE exclude each other; usage: {EVENTS_USAGE}"),
        ("EVENTS t WAIT 1", f"WAIT needs AFTER; usage: {EVENTS_USAGE}"),
        ("EVENTS t AFTER 1", "after: 1 is past the newest, 0: is this the same store?"),
        ("TOPICS 1 2", "unexpected '2'; usage: TOPICS [limit] [AFTER topic]"),
        ("UNSUBSCRIBE", "this connection has no subscription"),
        ("ACK 1", "this connection has no subscription with a name"),
        ("EVENT t", "a topic and an event_id are needed; usage: EVENT <topic> <event_id>"),
        ("EVENTS 'open", "no closing quotation: quote arguments as in a shell"),
    ],
)
def test_a_bad_command_says_what_is_wrong(server: ServerProcess, command: str, detail: str) -> None:
    assert server.ask(command) == {"status": "rejected", "code": "bad_command", "detail": detail, "line": 1}


def test_a_reader_that_never_ends_its_lines_costs_the_others_nothing(server: ServerProcess) -> None:
    with Peer(server.port) as silent:
        silent.send(b"EVENTS t")
        assert server.ask("PING")["pong"] is True


# --- `aggregator admin`


def admin(server: ServerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aggregator", "admin", "--to", f"127.0.0.1:{server.port}", *arguments],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def test_the_admin_tool_prints_json_into_a_pipe(server: ServerProcess) -> None:
    exchange(server.port, event("an id", topic="a topic"))

    done = admin(server, "EVENT", "a topic", "an id")
    assert done.returncode == 0
    assert json.loads(done.stdout)["event"]["event_id"] == "an id"
    assert done.stdout.count("\n") == 1


def test_the_admin_tool_keeps_every_digit_on_a_terminal_too(server: ServerProcess) -> None:
    payload = '{"n":123456789012345678901234567890,"m":1.10,"text":"a\\":b, [{","empty":{},"none":[]}'
    exchange(server.port, event("e", payload=payload))
    assert payload in admin(server, "EVENT", "t", "e").stdout

    ours, its = pty.openpty()
    command = [sys.executable, "-m", "aggregator", "admin", "--to", f"127.0.0.1:{server.port}", "EVENT", "t", "e"]
    with subprocess.Popen(command, stdout=its) as process:
        os.close(its)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while piece := os.read(ours, 65536):
                shown += piece
        assert process.wait(10) == 0
    os.close(ours)
    assert b'      "m": 1.10,\r\n      "text": "a\\":b, [{",\r\n      "empty": {},\r\n' in shown
    assert b"123456789012345678901234567890" in shown


def test_the_admin_tool_fails_when_the_command_does(server: ServerProcess) -> None:
    done = admin(server, "NONSENSE")

    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == "bad_command"


def test_admin_health_exits_0_only_when_healthy(server: ServerProcess) -> None:
    assert admin(server, "HEALTH").returncode == 0
    server.stop()
    down = admin(server, "HEALTH")
    assert down.returncode == 1
    assert down.stdout == ""
    assert "refused" in down.stderr
    assert down.stderr.count("\n") == 1
