"""SUBSCRIBE on the wire: backlog, hand-over, ends, refusals, and what else may happen on the same connection."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import sqlite3
import subprocess
import time
from typing import Any

import pytest

from tests.harness import changes
from tests.harness.account import Account
from tests.harness.background import in_background
from tests.harness.polling import wait_until
from tests.harness.reading import EVENT_START, Reading, verify
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import RESUMES, TOPICS
from tests.harness.wire import Json, Peer, event, events, exchange

pytestmark = pytest.mark.engines


def subscribe(peer: Peer, arguments: str) -> Json:
    reply = peer.ask(f"SUBSCRIBE {arguments}\n".encode())
    assert reply["status"] == "ok", reply
    return reply


def until(peer: Peer, status: str) -> list[Json]:
    """All lines up to the first with this status."""
    lines = [peer.reply()]
    while lines[-1]["status"] != status:
        lines.append(peer.reply())
    return lines


def seqs(lines: list[Json]) -> list[int]:
    return [line["event"]["seq"] for line in lines if line["status"] == "event"]


# --- the lines


def test_a_session_literally(server: ServerProcess) -> None:
    """Each line literally, except times and the name of the store. (A slow machine brings more heartbeats.)"""
    exchange(server.port, event("a", "app.web") + event("b", "db") + event("c", "app.web", '{"n":1.10}'))
    with Peer(server.port) as peer, Peer(server.port) as sender:
        peer.send(b"SUBSCRIBE app.* AFTER 1 BEAT 1\n")
        lines = _lines_until(peer, b'"caught_up"')
        sender.ask(event("d", "app.db"))
        lines += _lines_until(peer, b'"heartbeat","seq":4')
        peer.send(b"UNSUBSCRIBE\n")
        lines += _lines_until(peer, b'"unsubscribed"')
    once = dict.fromkeys(line for line in lines if b'"heartbeat"' not in line or b'"seq":4' in line)
    text = re.sub(rb'"store":"[0-9a-f]{16}"', b'"store":"S"', b"".join(once))
    text = re.sub(rb'"received_at":"2[^"]{22}Z"', b'"received_at":"T"', text)
    assert text.decode().splitlines() == [
        '{"status":"ok","subscribed":["app.*"],"after":1,"head":3,"store":"S"}',
        '{"status":"event","event":{"topic":"app.web","event_id":"c","timestamp":"2026-11-22T10:00:00Z","source":"test",'
        '"payload":{"n":1.10},"seq":3,"received_at":"T"}}',
        '{"status":"caught_up","seq":3}',
        '{"status":"event","event":{"topic":"app.db","event_id":"d","timestamp":"2026-11-22T10:00:00Z","source":"test",'
        '"payload":{},"seq":4,"received_at":"T"}}',
        '{"status":"heartbeat","seq":4}',
        '{"status":"ok","unsubscribed":true,"seq":4}',
    ]


def _lines_until(peer: Peer, mark: bytes) -> list[bytes]:
    lines = [peer.line()]
    while mark not in lines[-1]:
        lines.append(peer.line())
    return lines


def test_without_a_start_only_what_comes_is_delivered(server: ServerProcess) -> None:
    exchange(server.port, b"".join(events("old", 3)))
    with Peer(server.port) as peer, Peer(server.port) as sender:
        assert subscribe(peer, "*")["after"] == 3
        assert peer.reply() == {"status": "caught_up", "seq": 3}
        sender.ask(event("new"))
        assert peer.reply()["event"]["event_id"] == "new"


def test_a_duplicate_is_not_delivered(server: ServerProcess) -> None:
    with Peer(server.port) as peer, Peer(server.port) as sender:
        subscribe(peer, "* AFTER 0")
        for name in ("a", "a", "b"):
            sender.ask(event(name))
        assert [line["event"]["event_id"] for line in until(peer, "caught_up")[:-1] + peer.replies(2)] == ["a", "b"]


def test_the_heartbeat_tells_how_far_was_looked(server: ServerProcess) -> None:
    """Even if nothing matches: no reader is parked. With BEAT 0 nothing is sent."""
    with Peer(server.port) as peer, Peer(server.port) as silent:
        subscribe(peer, "nothing BEAT 1")
        subscribe(silent, "nothing BEAT 0")
        assert peer.reply()["status"] == "caught_up"
        exchange(server.port, b"".join(events("e", 10)))
        while (line := peer.reply())["seq"] < 10:
            assert line["status"] == "heartbeat"
        assert silent.reply()["status"] == "caught_up"
        assert silent.ask(b"PING\n")["pong"], "nothing was said before"


@pytest.mark.parametrize(
    ("options", "delivered", "end"),
    [
        ("AFTER 0 UNTIL NOW", [1, 2, 3, 4, 5], 5),
        ("AFTER 3 UNTIL NOW", [4, 5], 5),
        ("AFTER 5 UNTIL NOW", [], 5),
        ("UNTIL NOW", [], 5),
        ("AFTER 0 LIMIT 2", [1, 2], 2),
        ("AFTER 0 LIMIT 5", [1, 2, 3, 4, 5], 5),
        ("AFTER 0 LIMIT 9 UNTIL NOW", [1, 2, 3, 4, 5], 5),
        ("AFTER 0 LIMIT 2 UNTIL NOW", [1, 2], 2),
        ("SINCE 1h UNTIL NOW", [1, 2, 3, 4, 5], 5),
        ("AFTER 3 UNTIL 2001-01-01T00:00Z", [], 3),  # an end before the start does not move the position back
    ],
)
def test_a_subscription_that_ends(server: ServerProcess, options: str, delivered: list[int], end: int) -> None:
    """R3: also the position of the end. The connection stays open."""
    exchange(server.port, b"".join(events("e", 5)))
    with Peer(server.port) as peer:
        subscribe(peer, f"* {options}")
        lines = until(peer, "end")
        assert seqs(lines) == delivered
        assert lines[-1] == {"status": "end", "seq": end}
        assert all(line["status"] in ("event", "end") for line in lines)
        assert subscribe(peer, "*")["after"] == 5


def test_a_limit_counts_what_comes_too(server: ServerProcess) -> None:
    exchange(server.port, b"".join(events("e", 2)))
    with Peer(server.port) as peer, Peer(server.port) as sender:
        subscribe(peer, "* AFTER 0 LIMIT 4")
        assert seqs(until(peer, "caught_up")) == [1, 2]
        for line in events("f", 5):
            sender.ask(line)
        lines = until(peer, "end")
        assert (seqs(lines), lines[-1]["seq"]) == ([3, 4], 4)


def test_what_may_be_asked_for(server: ServerProcess) -> None:
    """SOURCE, CONTAINS, SHARD, topics named like options, many patterns."""
    lines = [
        event("a", "AFTER", '{"text":"hello"}'),
        event("b", "FROM"),
        event("c", "x.1", source='"other"'),
        event("d", "x.2", '{"text":"hello"}'),
        event("e", "a b/c*[é"),
    ]
    exchange(server.port, b"".join(lines))

    def delivered(arguments: str) -> str:
        with Peer(server.port) as peer:
            subscribe(peer, f"{arguments} AFTER 0 UNTIL NOW")
            return "".join(line["event"]["event_id"] for line in until(peer, "end")[:-1])

    assert delivered("AFTER") == "a"
    assert delivered("FROM AFTER") == "ab"
    assert delivered("x.?") == "cd"
    assert delivered("x.[13] FROM") == "bc"
    assert delivered("* SOURCE other") == "c"
    assert delivered("* CONTAINS hello") == "ad"
    assert delivered('* CONTAINS \'"text":"hello"\' SOURCE test') == "ad"
    assert delivered("'a b/c[*][[]é'") == "e"
    assert delivered("nothing") == ""
    assert sorted(delivered("* SHARD 1/2") + delivered("* SHARD 2/2")) == list("abcde")
    assert delivered(" ".join([*(f"n{number}" for number in range(63)), "x.*"])) == "cd"


@pytest.mark.parametrize(
    ("command", "detail"),
    [
        ("SUBSCRIBE", "a topic or pattern is missing"),
        ("SUBSCRIBE [a", "the set that opens at character 1 is not closed"),
        ("SUBSCRIBE * AFTER x", "after: expected a number"),
        ("SUBSCRIBE * AFTER -1", "after: expected a number"),
        ("SUBSCRIBE * AFTER 4", "after: 4 is past the newest event, 3: is this the same store?"),
        ("SUBSCRIBE * AFTER 999999999999999999", "is past the newest event, 3"),
        ("SUBSCRIBE * AFTER 9999999999999999999", "after: expected a number"),
        ("SUBSCRIBE * AFTER 1 SINCE 1m", "AFTER and SINCE exclude each other"),
        ("SUBSCRIBE * SINCE yesterday", "since: expected NOW, a date and time, or an age"),
        ("SUBSCRIBE * SINCE 2999-01-01T00:00Z", "since: 2999-01-01T00:00Z is in the future"),
        ("SUBSCRIBE * UNTIL 9999-12-31T23:59:60Z", "is in the future"),
        ("SUBSCRIBE * LIMIT 0", "limit: expected a number"),
        ("SUBSCRIBE * BEAT 3601", "beat: expected a number from 0 to 3600"),
        ("SUBSCRIBE * SHARD 3/2", "shard: expected I/N"),
        ("SUBSCRIBE * AS ''", "as: expected 1 to 255 printable characters"),
        ("SUBSCRIBE * AS 'a\tb'", "as: expected 1 to 255 printable characters"),
        ("SUBSCRIBE * BEAT 1 BEAT 2", "BEAT is given twice"),
        ("UNSUBSCRIBE", "this connection has no subscription"),
        ("ACK 1", "this connection has no subscription with a name"),
    ],
)
def test_what_is_refused(server: ServerProcess, command: str, detail: str) -> None:
    """R21: nothing is delivered, and the connection stays usable."""
    exchange(server.port, b"".join(events("e", 3)))
    with Peer(server.port) as peer:
        reply = peer.ask(command.encode() + b"\n")
        assert (reply["status"], reply["code"]) == ("rejected", "bad_command")
        assert detail in reply["detail"]
        assert peer.ask(b"PING\n")["pong"]
    assert server.ask("STATS")["subscribers"] == 0


def test_too_many_patterns_do_not_fit(server: ServerProcess) -> None:
    reply = server.ask("SUBSCRIBE " + " ".join(map(str, range(65))))

    assert "at most 64 patterns" in reply["detail"]


def test_one_subscription_at_a_time(server: ServerProcess) -> None:
    with Peer(server.port) as peer:
        subscribe(peer, "a")
        assert peer.reply()["status"] == "caught_up"
        assert "this connection already has a subscription" in peer.ask(b"SUBSCRIBE b\n")["detail"]
        assert peer.ask(b"UNSUBSCRIBE\n")["unsubscribed"]
        subscribe(peer, "b")


def test_another_store_is_seen(start_server: StartServer) -> None:
    """R21: its name differs, and a position that it never gave is refused."""
    one, other = start_server(), start_server()
    exchange(one.port, b"".join(events("e", 5)))
    exchange(other.port, b"".join(events("e", 3)))
    with Peer(one.port) as peer, Peer(other.port) as other_peer:
        store, other_store = subscribe(peer, "*")["store"], subscribe(other_peer, "*")["store"]
        assert store != other_store
    assert "is this the same store?" in other.ask("SUBSCRIBE * AFTER 5")["detail"]
    one.stop()
    one.restart()
    with Peer(one.port) as peer:
        assert subscribe(peer, "*")["store"] == store


# --- what is delivered, byte for byte


def test_events_come_as_they_were_sent(server: ServerProcess) -> None:
    """R15. After the prefix comes the event as it was sent, with seq and received_at at its end."""
    payloads = [
        '{"status":200,"event":{"seq":7},"seq":"x","received_at":null}',
        '{"n":1.10,"m":-0.0,"big":123456789012345678901234567890,"e":1E400}',
        '{"text":"\\u00e9\\ud83d\\ude00 é😀","half":"\\ud800"}',
        '{ "spaced" :\t[ 1 , 2 ]\r}',
        '{"a":1,"a":2}',
        "[" * 0 + '{"deep":' + "[" * 247 + "]" * 247 + "}",
        '{"large":"' + "x" * 900_000 + '"}',
        '{"after":"the large one"}',
    ]
    sent = [event(f"e{number}", "t", payload) for number, payload in enumerate(payloads)]
    sent += [
        event("own", "t", "{}", seq="1", received_at='"never"', status='"event"'),
        b'\t {"payload":{},"source":"s","timestamp":"2026-11-22T10:00:00Z","event_id":"blanks","topic":"t"} \t \r\n',
        b'{"seq":5,"topic":"t","event_id":"first","timestamp":"2026-11-22T10:00:00Z","source":"s","payload":{}}  \n',
    ]
    with Peer(server.port) as live:
        subscribe(live, "*")
        assert live.reply()["status"] == "caught_up"
        assert [reply["status"] for reply in exchange(server.port, b"".join(sent))] == ["stored"] * len(sent)
        with Peer(server.port) as later:
            subscribe(later, "* AFTER 0")
            for number, line in enumerate(sent, 1):
                as_sent = line.strip(b" \t\r\n")[:-1]
                for peer in (live, later):
                    delivered = peer.line()
                    assert delivered.startswith(EVENT_START + as_sent + b',"seq":%d,"received_at":"2' % number)
                    assert delivered.endswith(b'Z"}}\n')
                    assert json.loads(delivered)["event"]["seq"] == number
                    # The delivered event can be sent to another server unchanged.
                    copy = delivered[len(EVENT_START) : -2]
                    assert exchange(server.port, copy)[0]["status"] == "duplicate"


# --- one connection for everything


def test_everything_on_one_connection(server: ServerProcess) -> None:
    """R12: publish, ACK, EVENTS, PING and deliveries, pipelined: the replies come in the order of their lines, and the
    deliveries in the order of their seqs."""
    count = 300
    account = Account()
    sent: list[bytes] = [b"SUBSCRIBE * AFTER 0 BEAT 1 AS me\n"]
    expected = ["subscribed"]
    for number in range(count):
        sent += [account.line(f"e{number}"), b"PING\n", b"ACK 0\n", b"EVENTS t 1\n"]
        expected += [f"e{number}", "pong", "acked", "events"]
    sent += [b"UNSUBSCRIBE\n", account.line("last"), b"QUIT\n"]
    expected += ["unsubscribed", "last", "bye"]
    with Peer(server.port) as peer:
        sending = in_background(lambda: peer.send(b"".join(sent)))
        lines = peer.rest()
        sending.finish()
    delivered = seqs(lines)
    replies = [line for line in lines if line["status"] not in ("event", "caught_up", "heartbeat")]
    assert [kind(line) for line in replies] == expected
    assert delivered == sorted(set(delivered))
    unsubscribed = next(line for line in replies if "unsubscribed" in line)
    assert delivered == list(range(1, unsubscribed["seq"] + 1)), "all, up to what the reply says"
    behind = lines[lines.index(unsubscribed) :]
    assert seqs(behind) == []
    assert kind(lines[0]) == "subscribed"


def kind(line: Json) -> str:
    known = ("subscribed", "pong", "acked", "events", "unsubscribed", "bye")
    return line.get("event_id") or next((name for name in known if name in line), str(line))


def test_quit_ends_the_subscription_and_harms_no_other(server: ServerProcess) -> None:
    """After the end of its half nothing may be written to it; otherwise the delivery to all others would break."""
    with Peer(server.port) as other, Peer(server.port) as sender:
        subscribe(other, "*")
        assert other.reply()["status"] == "caught_up"
        for number in range(20):
            with Peer(server.port) as quitter:
                quitter.send(b"SUBSCRIBE * AFTER 0 BEAT 1\n" + (b"PING\n" if number % 2 else b"") + b"QUIT\n")
                assert quitter.reply()["status"] == "ok"
                sender.ask(event(f"e{number}"))
                assert quitter.rest()[-1] == {"status": "ok", "bye": True}
            assert other.reply()["event"]["event_id"] == f"e{number}"
        assert server.ask("STATS")["subscribers"] == 1
    assert "Traceback" not in server.log


def test_a_line_that_does_not_end_ends_the_subscription(start_server: StartServer) -> None:
    server = start_server("--line-timeout", "1")
    with Peer(server.port) as peer, Peer(server.port) as other:
        subscribe(peer, "*")
        subscribe(other, "*")
        peer.send(b'{"half')
        assert peer.rest()[-1]["code"] == "unfinished_line"
        exchange(server.port, event("e"))
        assert until(other, "event")[-1]["event"]["event_id"] == "e"
    assert "Traceback" not in server.log


# --- half-close


def test_a_subscription_outlives_the_half_close(server: ServerProcess) -> None:
    """R13. The connection ends together with the subscription."""
    exchange(server.port, event("a"))
    with Peer(server.port) as peer:
        peer.send(b"SUBSCRIBE * AFTER 0 LIMIT 3")  # without a line end, as echo -n sends it
        peer.half_close()
        assert peer.reply()["status"] == "ok"
        assert seqs(until(peer, "caught_up")) == [1]
        for name in "bcd":
            exchange(server.port, event(name))
        assert seqs(lines := peer.rest()) == [2, 3]
        assert lines[-1]["status"] == "end"
    wait_until(lambda: server.ask("STATS")["connections"] == 1)


@pytest.mark.netcat
@pytest.mark.parametrize(
    "client",
    [
        ["nc", "-N", "127.0.0.1", "{port}"],
        ["ncat", "127.0.0.1", "{port}"],
        ["socat", "-t", "30", "-", "TCP:127.0.0.1:{port}"],
        ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/{port}; cat >&3; sed -u '/\"end\"/q' <&3"],
    ],
    ids=["nc", "ncat", "socat", "bash"],
)
def test_what_everybody_has_at_hand_can_read(client: list[str], server: ServerProcess) -> None:
    """R13: the backlog, and the events that follow."""
    if not shutil.which(client[0]):
        pytest.skip(f"{client[0]} is not installed")
    exchange(server.port, b"".join(events("e", 3)))
    words = [word.replace("{port}", str(server.port)) for word in client]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin
            process.stdin.write(b"SUBSCRIBE * AFTER 1 LIMIT 4\n")
            process.stdin.close()
            assert process.stdout
            lines = [json.loads(process.stdout.readline()) for _ in range(4)]  # up to caught_up
            exchange(server.port, b"".join(events("f", 3)))
            lines += [json.loads(line) for line in process.stdout]
        finally:
            process.kill()
    assert seqs(lines) == [2, 3, 4, 5]
    assert [line["status"] for line in lines if line["status"] != "event"] == ["ok", "caught_up", "end"]


# --- a reader that does not read


def test_a_reader_that_does_not_read_is_not_muted_for_that(start_server: StartServer) -> None:
    """Only deliveries wait, and the rest of them is in the store: the reader keeps its place, and is answered later."""
    server = start_server(changes=[changes.impatient])
    account = Account()
    account.send(server.port, "e", 3000, f'{{"x":"{"x" * 1000}"}}')
    reading = Reading(server.port, "* AFTER 0", [account], receive_buffer=4096, paused=True)
    wait_until(lambda: [one["stalled_s"] > 2 for one in server.ask("SUBSCRIBERS")["subscribers"]] == [True])
    assert server.ask("STATS")["muted"] == 0
    reading.peer.send(b"PING\n")  # the server does not read it now, so its answer does not wait
    wait_until(lambda: [one["stalled_s"] > 4 for one in server.ask("SUBSCRIBERS")["subscribers"]] == [True])
    assert server.ask("STATS")["muted"] == 0
    reading.go_on()
    reading.wait_for(3000)
    reading.wait_for_line("ok")
    verify(reading, [account])
    reading.close()


def test_a_reader_that_leaves_replies_unread_is_muted_and_sees_an_end(start_server: StartServer) -> None:
    """The events that it sends are stored, before and after."""
    server = start_server(changes=[changes.impatient])
    account = Account()
    account.send(server.port, "e", 3000, f'{{"x":"{"x" * 1000}"}}')
    with Peer(server.port, receive_buffer=4096) as peer:
        # The WAIT is answered when the buffer is full.
        peer.send(b"SUBSCRIBE * AFTER 0\nEVENTS nothing AFTER 0 WAIT 1\n" + account.line("own"))
        wait_until(lambda: server.ask("STATS")["muted"] == 1)
        assert server.ask("STATS")["subscribers"] == 0
        peer.send(account.line("later"))
        lines = peer.rest()
        assert seqs(lines) == list(range(1, len(seqs(lines)) + 1))
        assert len(seqs(lines)) < 3000
        assert {line["status"] for line in lines} == {"ok", "event"}, "its replies are given up"
    wait_until(lambda: server.ask("STATS")["stored_total"] == 3002)
    wait_until(lambda: "does not read its replies: muted" in server.log)


def test_who_is_taken_over_while_stalled_may_go_on_later(start_server: StartServer) -> None:
    """A former reader is not muted either for the deliveries that are still unread."""
    server = start_server(changes=[changes.impatient])
    account = Account()
    account.send(server.port, "e", 3000, f'{{"x":"{"x" * 1000}"}}')
    stalled = Reading(server.port, "* AFTER 0 AS me", [account], receive_buffer=4096, paused=True)
    wait_until(lambda: server.ask("SUBSCRIBERS")["subscribers"][0]["state"] == "stalled")
    assert server.ask("FORGET me")["forgotten"]
    started = time.monotonic()
    wait_until(lambda: time.monotonic() - started > 2)  # longer than other clients are given
    assert server.ask("STATS")["muted"] == 0
    stalled.go_on()
    assert stalled.wait_for_line("error")["code"] == "taken_over"
    stalled.peer.send(b"PING\n")
    stalled.wait_for_line("ok")
    stalled.close()


# --- topics


@pytest.mark.engines("sqlite")
def test_topics_of_all_kinds(server: ServerProcess) -> None:
    """R14: patterns match what SQLite's GLOB matches, in stored events and in new ones."""
    choices = random.Random(5)
    parts = ["app", "db", " ", "*", "[", "]", "?", "é", "😀", ".", "/", "-", "^", "a", "b", "1", "2"]
    topics = sorted({"".join(choices.choices(parts, k=choices.randint(1, 5))) for _ in range(TOPICS)})
    lines = [event(f"e{number}", topic) for number, topic in enumerate(topics)]
    half = len(lines) // 2
    exchange(server.port, b"".join(lines[:half]))
    globs = [
        "*",
        "app*",
        "*.*",
        "[*]*",
        "*[[]*",
        "?",
        "??",
        "*😀",
        "[ab]?[12]",
        "*[^a-z]",
        "a*b*1",
        "* *",
        "[]]*",
        "app",
        "é*é",
    ]
    peers = []
    with contextlib.ExitStack() as stack:
        for glob in globs:
            peers.append(stack.enter_context(Peer(server.port)))
            subscribe(peers[-1], f"'{glob}' AFTER 0 BEAT 1")
        exchange(server.port, b"".join(lines[half:]))
        with contextlib.closing(sqlite3.connect(f"{server.db.as_uri()}?mode=ro", uri=True)) as database:
            for glob, peer in zip(globs, peers, strict=True):
                wanted = database.execute(
                    "SELECT name FROM topics WHERE name GLOB ? ORDER BY last_seq", (glob,)
                ).fetchall()
                delivered: list[str] = []
                position = 0
                while position < len(lines):
                    line = peer.reply()
                    if line["status"] == "event":
                        delivered.append(line["event"]["topic"])
                    position = line["event"]["seq"] if line["status"] == "event" else line["seq"]
                assert delivered == [name for (name,) in wanted], glob
                answer = server.ask(f"EVENTS '{glob}' 1000")
                assert [one["topic"] for one in answer["events"]] == delivered[::-1][:1000]


# --- positions


def test_every_position_is_a_place_to_resume_from(server: ServerProcess) -> None:
    """R3: the position of each line, of every kind, while events are stored."""
    account, other = Account("app.t"), Account("x")
    account.send(server.port, "e", 200)
    positions: list[tuple[int, int]] = []
    reading = Reading(server.port, "app.* AFTER 0 BEAT 1", [account])
    others = [Reading(server.port, f"app.* AFTER {after} LIMIT 7", [account]) for after in range(0, 200, 9)]
    for number in range(10):
        other.send(server.port, f"o{number}", 5)
        account.send(server.port, f"f{number}", 5)
    for one in others:
        one.wait_for_line("end")
    head = server.ask("EVENTS * 1")["seq"]
    reading.wait_for(head)
    with Peer(server.port) as peer:
        subscribe(peer, "app.* AFTER 10")
        unsubscribed = peer.ask(b"UNSUBSCRIBE\n")
        while "unsubscribed" not in unsubscribed:
            unsubscribed = peer.reply()
    told = [line["seq"] for one in [reading, *others] for line in one.control] + [unsubscribed["seq"]]
    told += reading.seqs + [seq for one in others for seq in one.seqs]
    positions = [(position, number) for number, position in enumerate(told)][:: max(1, len(told) // RESUMES)]
    stored = [found["seq"] for found in server.listed("app.t")]
    with Peer(server.port) as peer:
        for position, _ in positions:
            subscribe(peer, f"app.* AFTER {position} UNTIL NOW")
            assert seqs(until(peer, "end")) == [seq for seq in stored if seq > position]
    verify(reading, [account])
    for one in [reading, *others]:
        one.close()


@pytest.mark.engines("sqlite")
def test_what_is_gone_is_told(server: ServerProcess) -> None:
    """R20: the exact range is told, and then the reader goes on."""
    for number in range(10):
        exchange(server.port, event(f"e{number}"))
    with Peer(server.port) as ahead:
        subscribe(ahead, "* AFTER 8")
        with contextlib.closing(sqlite3.connect(server.db, isolation_level=None)) as database:
            database.execute("DELETE FROM blocks WHERE first_seq <= 6")
        exchange(server.port, event("new"))
        assert [line["status"] for line in until(ahead, "caught_up") + ahead.replies(1)].count("gap") == 0
    with Peer(server.port) as peer:
        subscribe(peer, "* AFTER 2")
        lines = until(peer, "caught_up")
    assert lines[0] == {"status": "gap", "after": 2, "seq": 6}
    assert seqs(lines) == [7, 8, 9, 10, 11]


# --- the list of subscribers


def test_subscribers_are_listed(server: ServerProcess) -> None:
    exchange(server.port, b"".join(events("e", 3)))
    with Peer(server.port) as peer, Peer(server.port) as named:
        subscribe(peer, "* AFTER 0 BEAT 1")  # through the beat the server notices that it is gone
        until(peer, "caught_up")
        subscribe(named, "x y LIMIT 5 AS 'a name' BEAT 1")
        until(named, "caught_up")
        listed = server.ask("SUBSCRIBERS")
        names = [peer.socket.getsockname()[1], named.socket.getsockname()[1]]
        assert listed["total"] == 2
        assert listed["subscribers"] == [
            {
                "peer": f"127.0.0.1:{names[0]}", "name": None, "patterns": ["*"], "state": "live", "next": 4, "lag": 0,
                "delivered": 3, "stalled_s": 0.0,
            },
            {
                "peer": f"127.0.0.1:{names[1]}", "name": "a name", "patterns": ["x", "y"], "state": "catching_up",
                "next": 4, "lag": 0, "delivered": 0, "stalled_s": 0.0,
            },
        ]  # fmt: skip
        assert len(server.ask("SUBSCRIBERS 1")["subscribers"]) == 1
        stats = server.ask("STATS")
        assert (stats["subscribers"], stats["catching_up"], stats["delivered"], stats["cursors"]) == (2, 1, 3, 1)
    wait_until(lambda: server.ask("SUBSCRIBERS") == {"status": "ok", "total": 0, "subscribers": []})


def test_the_places_of_subscribers_are_limited(start_server: StartServer) -> None:
    """Three quarters of the connections, even if all subscribers come at once."""
    server = start_server("--max-connections", "40")
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.port)) for _ in range(36)]
        for peer in peers:
            peer.send(b"SUBSCRIBE * AFTER 0 AS %d\n" % peer.socket.fileno())
        replies = [peer.reply() for peer in peers]
        refused = [reply for reply in replies if reply["status"] != "ok"]
        assert len(refused) == 6
        assert {(reply["status"], reply["code"]) for reply in refused} == {("error", "busy")}
        assert refused[0]["detail"] == "30 subscribers; try again later"
        assert server.ask("STATS")["subscribers_refused"] == 6
        for peer, reply in zip(peers, replies, strict=True):
            if reply["status"] == "ok":
                until(peer, "caught_up")
                peer.send(b"UNSUBSCRIBE\n")
                peer.reply()
        subscribe(next(peer for peer, reply in zip(peers, replies, strict=True) if reply in refused), "*")


def test_a_thousand_subscribers(start_server: StartServer) -> None:
    """With room for 1,400 connections: each subscriber gets each event; the places are free once they are gone."""
    server = start_server("--max-connections", "1400", "--address-connections", "1400")
    memory = server.rss_bytes
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.port)) for _ in range(1000)]
        for number, peer in enumerate(peers):
            peer.send(f"SUBSCRIBE t {'' if number % 2 else 'app.*'} BEAT 0\n".encode())
        for peer in peers:
            assert peer.reply()["status"] == "ok"
            assert peer.reply()["status"] == "caught_up"
        for number in range(5):
            exchange(server.port, event(f"e{number}"))
        for peer in peers:
            assert seqs(peer.replies(5)) == [1, 2, 3, 4, 5]
        assert server.ask("STATS")["delivered"] == 5000
        assert server.rss_bytes - memory < 100 << 20
        for peer in peers:
            peer.reset()
    wait_until(lambda: server.ask("STATS")["subscribers"] == 0)
    wait_until(lambda: server.ask("STATS")["connections"] == 1)


def test_large_sets_of_patterns_are_served(server: ServerProcess) -> None:
    """64 patterns with many stars each, and topics that almost match them."""
    patterns = " ".join(f"{'*a' * 20}{number}" for number in range(64))
    lines = b"".join(event(f"e{number}", "a" * 200 + str(number % 64), "{}") for number in range(200))
    with Peer(server.port) as peer:
        subscribe(peer, f"{patterns} AFTER 0")
        exchange(server.port, lines)
        found: list[Any] = []
        while len(found) < 200:
            found += seqs([peer.reply()])
    assert found == list(range(1, 201))
