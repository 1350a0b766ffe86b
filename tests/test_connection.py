"""The wire protocol against a real server: every reply, their order, half-close, resets, both listeners."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest

from aggregator.server.peer import GATHER_EVENTS
from aggregator.wire.meaning import PIECE_LINES
from tests.harness.changes import gathering_for_a_minute
from tests.harness.database_check import check_database
from tests.harness.other_program import holding_the_lock
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.wire import Json, Peer, event, events, exchange

pytestmark = pytest.mark.engines


def statuses(replies: list[Json]) -> list[str]:
    return [reply.get("code") or reply["status"] for reply in replies]


def test_an_event_is_stored_and_its_resend_is_a_duplicate_with_the_same_seq(server: ServerProcess) -> None:
    first, again, other = exchange(server.port, event("evt-001") + event("evt-001") + event("evt-002"))

    assert list(first) == ["status", "seq", "topic", "event_id"]
    assert first == {"status": "stored", "seq": first["seq"], "topic": "t", "event_id": "evt-001"}
    assert again == {"status": "duplicate", "seq": first["seq"], "topic": "t", "event_id": "evt-001"}
    assert other["status"] == "stored"
    assert other["seq"] > first["seq"]


def test_every_rejection_says_what_is_wrong_and_on_which_line(server: ServerProcess) -> None:
    lines = [
        b"\n",
        b"%bad line\n",
        b"{bad json\n",
        event("e", payload='"text"'),
        b"EVENTS\n",
        b"NONSENSE\n",
        b"nonsense\n",
        b'{"topic":"t","event_id":"deep","payload":' + b"[" * 2000 + b"\n",
        b"x" * (1 << 20) + b"x\n",
        b"\r\n",
        event("good"),
    ]
    *rejections, good = exchange(server.port, b"".join(lines))

    assert [(reply["status"], reply["code"], reply["line"]) for reply in rejections] == [
        ("rejected", "bad_line", 2),
        ("rejected", "bad_json", 3),
        ("rejected", "bad_event", 4),
        ("rejected", "bad_command", 5),
        ("rejected", "bad_command", 6),
        ("rejected", "bad_line", 7),
        ("rejected", "too_deep", 8),
        ("rejected", "too_long", 9),
    ]
    assert rejections[2]["detail"] == "payload: expected an object, got a string"
    assert (rejections[2]["topic"], rejections[2]["event_id"]) == ("t", "e")
    assert good["status"] == "stored"


@pytest.mark.parametrize(
    ("stream", "ids"),
    [
        (event("a") + event("b"), ["a", "b"]),
        (event("a").replace(b"\n", b"\r\n") + event("b"), ["a", "b"]),
        (b"\xef\xbb\xbf" + event("a"), ["a"]),
        (b"\n\r\n" + event("a") + b"\n", ["a"]),
        (b" \t" + event("a") + b"  \n \r\n\t\n" + b" " * 10 + event("b"), ["a", "b"]),
        (b"\xef\xbb\xbf  " + event("a") + b"  ", ["a"]),
        (b"".join(b" " + one for one in events("e", 20)), [f"e-{i}" for i in range(20)]),
        (event("a") + event("last")[:-1], ["a", "last"]),
    ],
)
def test_line_ends_bom_and_a_last_line_without_lf(server: ServerProcess, stream: bytes, ids: list[str]) -> None:
    """T25; bare CR and NUL are in the JSON matrix and in test_lines.py."""
    assert [reply["event_id"] for reply in exchange(server.port, stream)] == ids


def test_a_cut_last_line_is_rejected(server: ServerProcess) -> None:
    assert statuses(exchange(server.port, event("a") + event("b")[:-10])) == ["stored", "bad_json"]


def test_a_line_may_arrive_byte_by_byte(server: ServerProcess) -> None:
    with Peer(server.port) as peer:
        for byte in event("slow"):
            peer.send(bytes([byte]))
        assert peer.reply()["status"] == "stored"


PAYLOADS = [
    '{"n":123456789012345678901234567890}',
    '{"n":1.10,"m":-0.0,"e":1E+5,"big":' + "9" * 400 + "}",
    '{"n":18446744073709551615}',
    '{"s":"a\\u0000b","t":"\\u00e9 \\/ \\" \\\\"}',
    '{ "spaced" : [ 1 , 2 ] }',
    '{"a":1,"a":2}',
    '{"ü":"日本 🙂"}',
    "{}",
]


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("form", ["%s\n", "[%s]\n", '{"events":[%s]}\n'])
def test_a_payload_comes_back_byte_for_byte(server: ServerProcess, payload: str, form: str) -> None:
    sent = event("e", payload=payload, level="30")[:-1]
    with Peer(server.port) as peer:
        peer.send(form.encode() % sent)
        peer.reply()
        peer.send(b"EVENT t e\n")
        peer.half_close()
        answer = peer.raw_rest()

    prefix = b'{"status":"ok","event":'
    assert answer.startswith(prefix + sent[:-1] + b',"seq":1,"received_at":"2')
    found = json.loads(answer)["event"]
    assert found["level"] == 30
    assert found["received_at"].endswith("Z")


def test_keys_are_compared_after_json_unescaping(server: ServerProcess) -> None:
    escaped = event("caf\u00e9").replace(b"\\u00e9", b"\\u00E9")
    plain = event("caf\u00e9").replace(b"\\u00e9", "é".encode())

    assert statuses(exchange(server.port, escaped + plain)) == ["stored", "duplicate"]
    assert server.ask("EVENT t café")["event"]["event_id"] == "café"


def test_a_batch_has_one_reply_with_one_result_an_event_in_order(server: ServerProcess) -> None:
    a, b = event("a")[:-1], event("b")[:-1]
    replies = exchange(server.port, b"[%b,%b,3,%b]\n" % (a, b, a) + b'{"events":[%b]}\n' % b + b"[]\n")

    assert {name: replies[0][name] for name in ("status", "stored", "duplicate", "rejected", "error")} == {
        "status": "batch", "stored": 2, "duplicate": 1, "rejected": 1, "error": 0,
    }  # fmt: skip
    assert [(result["status"], result.get("event_id")) for result in replies[0]["results"]] == [
        ("stored", "a"),
        ("stored", "b"),
        ("rejected", None),
        ("duplicate", "a"),
    ]
    assert replies[0]["results"][3]["seq"] == replies[0]["results"][0]["seq"]
    assert (replies[1]["duplicate"], replies[2]["results"]) == (1, [])


def test_a_command_sees_what_was_sent_before_it(server: ServerProcess) -> None:
    stream = b"".join(event(f"e{i}") + f"EVENT t e{i}\nSTATS\nTOPICS\n".encode() for i in range(50))
    replies = exchange(server.port, stream)

    for i in range(50):
        stored, found, stats, topics = replies[4 * i : 4 * i + 4]
        assert found["event"]["seq"] == stored["seq"]
        assert stats["stored_total"] > i
        assert topics["topics"][0]["stored"] > i


def test_half_close_prints_every_ack_and_then_closes(server_on_both_loops: ServerProcess) -> None:
    """T34."""
    replies = exchange(server_on_both_loops.port, b"".join(events("e", 1000)))

    assert statuses(replies) == ["stored"] * 1000


def test_complete_lines_before_a_reset_are_stored_and_the_rest_is_dropped(
    server_on_both_loops: ServerProcess,
) -> None:
    server = server_on_both_loops
    with Peer(server.port) as peer:
        peer.send(b"".join(events("e", 500)) + event("cut")[:-1])
        peer.reply()  # the server has begun to read
        wait_until(lambda: server.ask("STATS")["stored_total"] == 500)
        peer.reset()
    wait_until(lambda: server.ask("STATS")["connections"] == 1)

    assert set(server.stored("t")) == {f"e-{i}" for i in range(500)}
    assert "Traceback" not in server.log


@contextlib.contextmanager
def waiting_events(server: ServerProcess) -> Iterator[None]:
    """Let so many events wait that a client which then sends few lines is not read again at once.

    Another program holds the write lock.
    """
    with Peer(server.port) as peer, holding_the_lock(server.db):
        peer.send(b"".join(events("taken", PIECE_LINES)))
        wait_until(lambda: server.ask("HEALTH")["health"] == "degraded")
        peer.send(b"".join(events("waiting", GATHER_EVENTS)))
        wait_until(lambda: server.ask("STATS")["queue_events"] == GATHER_EVENTS)
        yield


@pytest.mark.engines("sqlite")
def test_who_sends_few_lines_is_not_read_on_at_once_while_many_events_wait(start_server: StartServer) -> None:
    server = start_server(changes=[gathering_for_a_minute])
    with Peer(server.port) as few, Peer(server.port) as many:
        for name in ("one", "two"):  # no events wait yet
            assert statuses([few.ask(event(name))]) == ["stored"]
        with waiting_events(server):
            before = server.ask("STATS")["received"]
            few.send(event("first"))
            wait_until(lambda: server.ask("STATS")["received"] == before + 1)
            few.send(event("later"))
            many.send(b"".join(events("some", PIECE_LINES)))
            wait_until(lambda: server.ask("STATS")["received"] == before + 1 + PIECE_LINES)
            many.send(b"".join(events("more", PIECE_LINES)))
            wait_until(lambda: server.ask("STATS")["received"] == before + 1 + 2 * PIECE_LINES)
        assert statuses([few.reply()]) == ["stored"]
        assert server.ask("STATS")["received"] == before + 1 + 2 * PIECE_LINES
        assert server.stop() == 0
    check_database(server.db)
    server.start()

    acked = {"one", "two", "first", *(f"{name}-{i}" for name in ("some", "more") for i in range(PIECE_LINES))}
    stored = set(server.stored("t"))
    assert acked <= stored
    assert "later" not in stored, "it was never acked, and nobody has read it"


@pytest.mark.engines("sqlite")
def test_what_such_a_client_sends_is_read_soon_whatever_it_does_then(server: ServerProcess) -> None:
    with Peer(server.port) as few, Peer(server.port) as gone, Peer(server.port) as ended:
        with waiting_events(server):
            before = server.ask("STATS")["received"]
            few.send(event("few"))
            gone.send(event("gone"))
            ended.send(event("ended"))
            wait_until(lambda: server.ask("STATS")["received"] == before + 3)
            gone.reset()
            ended.half_close()
            few.send(event("more") + b"PING\n")
            wait_until(lambda: server.ask("STATS")["received"] == before + 4)
        assert statuses(ended.rest()) == ["stored"]
        assert statuses([few.reply() for _ in range(3)]) == ["stored", "stored", "ok"]
    assert {"few", "gone", "ended", "more"} <= set(server.stored("t"))


def test_quit_says_bye_after_everything_before_it_and_reads_no_further(server: ServerProcess) -> None:
    with Peer(server.port) as peer:
        peer.send(
            event("before") + b"quit\nQUIT now\nQuit by signal\nquit: x\n" + event("text") + b"QUIT\n" + event("after")
        )
        assert statuses(peer.rest()) == ["stored", *["bad_command"] * 3, "bad_line", "stored", "ok"]

    assert list(server.stored("t")) == ["before", "text"]


@pytest.mark.parametrize(
    ("hello", "answer"),
    [
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n\r\n", b"HTTP/1.1 400 "),
        (b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03\n\n", b"\x15\x03"),
    ],
)
def test_other_protocols_get_an_answer_they_understand_and_store_nothing(
    server: ServerProcess, hello: bytes, answer: bytes
) -> None:
    with Peer(server.port) as peer:
        peer.send(hello + event("tricked"))
        assert peer.raw_rest().startswith(answer)
    with Peer(server.silent_port) as peer:
        peer.send(hello + event("tricked"))
        assert peer.raw_rest() == b""

    stats = server.ask("STATS")
    assert (stats["stored_total"], stats["received"], stats["connections_refused"]) == (0, 0, 2)


def test_the_silent_port_stores_and_never_writes_a_byte(server: ServerProcess) -> None:
    good = b"".join(events("e", 100))
    bad = b"%\n{\nPING\n" + event("x", payload="1") + b"x" * (2 << 20) + b"\n"
    with Peer(server.silent_port) as peer:
        peer.send(good + bad + b"[" + event("in-batch")[:-1] + b",1]\n" + event("last")[:-1])
        peer.half_close()
        assert peer.raw_rest() == b""

    wait_until(lambda: server.ask("STATS")["stored_total"] == 102)
    assert server.ask("STATS")["rejected"] == 6
    assert server.ask("STATS")["rejected_by_code"] == {
        "bad_line": 1, "bad_json": 1, "not_allowed": 1, "bad_event": 2, "too_long": 1,
    }  # fmt: skip
    assert server.ask("STATS")["skipped_bytes"] == 2 << 20
    assert server.stop() == 0
    assert "silent port: rejected line 101 of 127.0.0.1" in server.log
    assert server.log.count("WARNING silent port: rejected") == 5, "the log is rate-limited, each code by itself"


def test_commands_are_refused_on_the_silent_port_and_that_is_logged(server: ServerProcess) -> None:
    with Peer(server.silent_port) as peer:
        peer.send(b"STATS\n")
        peer.half_close()
        assert peer.raw_rest() == b""

    wait_until(lambda: "not_allowed" in server.log)
