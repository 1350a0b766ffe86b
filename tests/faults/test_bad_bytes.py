"""Any bytes may arrive. Each line has one reply; no other client is harmed, no memory is held, no line smuggled in."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.harness.background import in_background
from tests.harness.mutated_lines import answered_lines, fault, mutated, outcome
from tests.harness.polling import wait_until
from tests.harness.record import RecordFigures
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.sizes import MUTATED_LINES
from tests.harness.wire import Peer, event, events, exchange

MIB = 1 << 20


@pytest.fixture(autouse=True)
def no_defect_shows(server: ServerProcess) -> Iterator[None]:
    """After each of these tests the server is healthy, and has logged no traceback and no error."""
    yield
    assert server.ask("HEALTH")["health"] == "healthy"
    assert "Traceback" not in server.log
    assert " ERROR " not in server.log


POISON = [
    pytest.param(event("p").replace(b'"p"', b"18446744073709551615"), "bad_event", id="2^64-1"),
    pytest.param(event("p").replace(b'"p"', b'"\\ud800"'), "bad_event", id="half a surrogate pair"),
    pytest.param(event("p").replace(b'"p"', b'"a\\u0000b"'), "bad_event", id="escaped NUL"),
    pytest.param(event("p").replace(b'"p"', b'"a\x00b"'), "bad_json", id="raw NUL"),
    pytest.param(event("p").replace(b'"p"', b'"\xff"'), "bad_json", id="not UTF-8"),
    pytest.param(event("p", payload="[]"), "bad_event", id="wrong type"),
    pytest.param(event("p", payload="[" * 2000 + "]" * 2000), "too_deep", id="nested"),
]


@pytest.mark.parametrize(("poison", "code"), POISON)
def test_one_poison_event_among_500_harms_no_other(server: ServerProcess, poison: bytes, code: str) -> None:
    """T20. Each event has its own line, and all are committed together."""
    lines = events("e", 500)
    lines[250] = poison
    replies = exchange(server.port, b"".join(lines))

    assert [outcome(reply) for reply in replies] == ["stored"] * 250 + [code] + ["stored"] * 249
    assert replies[250]["line"] == 251
    assert server.stored("t").keys() == {f"e-{i}" for i in range(500) if i != 250}


@pytest.mark.parametrize(
    ("poison", "code"),
    [one for one in POISON if one.id in ("2^64-1", "half a surrogate pair", "escaped NUL", "wrong type")],
)
def test_one_poison_event_in_a_batch_line_harms_no_other(server: ServerProcess, poison: bytes, code: str) -> None:
    """T20. A poison event that is not JSON spoils its whole line; one that is JSON is one bad member."""
    lines = events("e", 500)
    lines[250] = poison
    (reply,) = exchange(server.port, b"[" + b",".join(line[:-1] for line in lines) + b"]\n")

    assert [outcome(result) for result in reply["results"]] == ["stored"] * 250 + [code] + ["stored"] * 249


SMUGGLED = event("smuggled")


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"x" * (MIB + 1), id="limit+1"),
        pytest.param(b"x" * 2 * MIB, id="2x"),
        pytest.param(b'{"a":"' + b"x" * MIB + SMUGGLED[:-1], id="an event at its end"),
        pytest.param(b"x" * (MIB + 1) + b"\r" + SMUGGLED[:-1], id="a CR in its tail"),
        pytest.param(b"x" * MIB + b"\0" + SMUGGLED[:-1], id="a NUL in its tail"),
    ],
)
@pytest.mark.parametrize("pause", [False, True])
def test_an_over_long_line_is_rejected_once_and_nothing_in_it_is_read(
    server: ServerProcess, line: bytes, pause: bool
) -> None:
    """T24. Its tail is never taken for a line, not even when it arrives after the rejection was sent."""
    with Peer(server.port) as peer:
        peer.send(line[: MIB + 2])
        head = []
        if pause and len(line) > MIB + 1:
            head = [peer.reply()]
        peer.send(line[MIB + 2 :] + b"\n" + event("after"))
        peer.half_close()
        replies = head + peer.rest()

    assert [(outcome(reply), reply.get("line")) for reply in replies] == [("too_long", 1), ("stored", None)]
    assert list(server.stored("t")) == ["after"]


def test_a_line_feed_ends_an_over_long_line_and_what_follows_is_a_line(server: ServerProcess) -> None:
    """T24. The other side of the same rule: nothing after its LF is skipped."""
    replies = exchange(server.port, b"x" * 2 * MIB + b"\n" + event("a") + b"y" * 2 * MIB + b"\n" + event("b"))

    assert [outcome(reply) for reply in replies] == ["too_long", "stored", "too_long", "stored"]


def test_a_line_far_over_the_limit_costs_no_memory(server: ServerProcess, record_figures: RecordFigures) -> None:
    """T24. 100 MB without an LF."""
    server.ask("PING")
    before = server.rss_bytes
    with Peer(server.port) as peer:
        for _ in range(100):
            peer.send(b"x" * MIB)
        assert peer.reply()["code"] == "too_long"
        grown = server.rss_bytes - before
        assert peer.ask(b"\n" + event("e"))["status"] == "stored"
    record_figures("100 MB without an LF", grown_bytes=grown)
    assert grown < 8 * MIB


def test_an_unfinished_line_is_held_about_once(server: ServerProcess, record_figures: RecordFigures) -> None:
    """T24. Clients can make the server hold the unfinished line, plus the bytes of one read."""
    server.ask("PING")
    before = server.rss_bytes
    holding = [Peer(server.port) for _ in range(40)]
    for peer in holding:
        peer.send(b"{" + b"x" * (MIB - 2))
    wait_until(lambda: server.rss_bytes - before > 38 * MIB)  # it has read nearly all of it
    grown = (server.rss_bytes - before) / len(holding)
    for peer in holding:
        assert peer.ask(b"}\n")["code"] == "bad_json"
        peer.close()
    record_figures("unfinished lines", rounds=len(holding), bytes_per_connection=grown)
    assert grown < 2 * MIB + 128 * 1024


GOOD = event("e")[:-1]
MATRIX = [
    # Numbers: JSON sets no limits, and each digit is kept.
    (event("e", payload='{"n":9007199254740993}'), "stored"),
    (event("e", payload='{"n":9223372036854775808}'), "stored"),
    (event("e", payload='{"n":18446744073709551616}'), "stored"),
    (event("e", payload='{"n":-9223372036854775809}'), "stored"),
    (event("e", payload='{"n":1e400}'), "stored"),
    (event("e", payload='{"n":-0}'), "stored"),
    (event("e", payload='{"n":1E-999}'), "stored"),
    (event("e", payload='{"n":' + "7" * 5000 + "}"), "stored"),
    (event("e", payload='{"n":NaN}'), "bad_json"),
    (event("e", payload='{"n":-Infinity}'), "bad_json"),
    (event("e", payload='{"n":01}'), "bad_json"),
    (event("e", payload='{"n":1.}'), "bad_json"),
    (event("e", payload='{"n":.5}'), "bad_json"),
    (event("e", payload='{"n":+1}'), "bad_json"),
    (event("e", payload='{"n":0x10}'), "bad_json"),
    (event("e", payload='{"n":1_000}'), "bad_json"),
    # Strings.
    (event("e", payload='{"s":"\\ud83d\\ude42"}'), "stored"),
    (event("e", payload='{"s":"\\u0000"}'), "stored"),
    (event("e", payload='{"s":"\u2028\u2029\ufeff"}'), "stored"),
    (event("e", payload='{"s":"\\ud800"}'), "stored"),
    (event("e", payload='{"s":"\\ude42\\ud83d"}'), "stored"),
    (event("e", payload='{"\\ud83d":[1e999,"\\ud83d\\u0041"]}'), "stored"),
    (event("e", payload='{"s":"\\ud83"}'), "bad_json"),
    (event("e", payload='{"s":"\\x41"}'), "bad_json"),
    (event("e", payload='{"s":"\\u12"}'), "bad_json"),
    (event("e", payload="{'s':1}"), "bad_json"),
    (event("e", payload='{"s":"\t"}'), "bad_json"),
    (event("e").replace(b'"test"', b'"\xc3\x28"'), "bad_json"),
    (event("e").replace(b'"test"', b'"\xed\xa0\x80"'), "bad_json"),
    (event("e").replace(b'"test"', b'"\xc0\xaf"'), "bad_json"),
    (event("e").replace(b'"test"', b'"\xf4\x90\x80\x80"'), "bad_json"),
    # Structure.
    (GOOD + b" \t\n", "stored"),
    (GOOD[:-1] + b',"topic":"t"}\n', "stored"),
    (GOOD[:-1] + b',"event_id":7}\n', "bad_event"),
    (GOOD[:-1] + b',"":{}}\n', "stored"),
    (GOOD[:-1] + b",}\n", "bad_json"),
    (GOOD + b"," + GOOD + b"\n", "bad_json"),
    (GOOD + GOOD + b"\n", "bad_json"),
    (GOOD[:-1] + b"\n", "bad_json"),
    (GOOD + b"//\n", "bad_json"),
    (GOOD + b"\0\n", "bad_json"),
    (b"{}\n", "bad_event"),
    (b'{"events":[{}],"topic":1}\n', "bad_event"),
    (b"\xef\xbb\xbf" + GOOD + b"\n", "bad_line"),
    (b"\xff\xfe{\0}\0\n", "bad_line"),
    (b"null\n", "bad_line"),
    (b'"text"\n', "bad_line"),
    (b" \t\r" + GOOD + b" \n", "stored"),
    (b"\x0b" + GOOD + b"\n", "bad_line"),
    (b"\xc2\xa0" + GOOD + b"\n", "bad_line"),
    (b'{"events":[],"events":[]}\n', "bad_event"),
]


def test_the_json_matrix(server: ServerProcess) -> None:
    """T26. All lines come on one connection, so a BOM is never at its start. Each line is answered as documented."""
    with Peer(server.port) as peer:
        assert peer.ask(event("first"))["status"] == "stored"
        for number, (line, expected) in enumerate(MATRIX):
            sent = line.replace(b'"event_id":"e"', b'"event_id":"e%d"' % number)
            assert (outcome(peer.ask(sent)), line) == (expected, line)
            if expected == "stored":
                peer.send(f"EVENT t e{number}\n".encode())
                assert sent.strip()[:-1] + b',"seq":' in peer.line(), "byte for byte"


def nested(levels: int) -> bytes:
    """An event nested this deep: the event itself, its payload, and arrays."""
    return event("deep", payload='{"a":' + "[" * (levels - 2) + "]" * (levels - 2) + "}")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (nested(250), "stored"),
        *[(nested(levels), "too_deep") for levels in (251, 253, 255, 1_000, 1_024, 1_025, 100_000)],
        (b"[" + nested(250)[:-1] + b"]\n", "batch"),
        (b"[" * MIB + b"\n", "too_deep"),
        (b'{"a":' * (MIB // 5) + b"\n", "too_deep"),
        (b"[{" * (MIB // 2) + b"\n", "bad_json"),
        (b"]" * MIB + b"\n", "bad_line"),
        (event("deep", payload='{"a":"' + "[" * 300_000 + '"}'), "stored"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[:3]!r}{len(value)}",
)
def test_nesting_harms_nothing(server: ServerProcess, line: bytes, code: str, record_figures: RecordFigures) -> None:
    """T27. On both ports. On the silent port the refusal is logged, and the log holds no deep object."""
    server.ask("PING")
    before = server.rss_bytes
    assert [outcome(reply) for reply in exchange(server.port, line)] == [code]
    with Peer(server.silent_port) as peer:
        peer.send(line)
    wait_until(lambda: server.ask("STATS")["received"] == 2)
    wait_until(lambda: server.ask("STATS")["connections"] == 1)
    grown = server.rss_bytes - before
    record_figures(f"nesting: {code}", grown_bytes=grown)
    if code not in ("stored", "batch"):
        server.wait_for_log("silent port: rejected line 1 of ")
    assert grown < 20 * MIB
    assert len(server.log) < 10_000


@pytest.mark.timeout(300)  # a busy machine takes two minutes for this many lines
def test_mutated_lines_have_one_reply_each(start_server: StartServer, record_figures: RecordFigures) -> None:
    """T28. Lines from a fixed seed on one connection. Each reply is compared with Python's own parser."""
    limit = 2000
    server = start_server("--max-line-bytes", f"{limit}")
    random_ = random.Random(20261122)
    stream = event("first") + b"".join(mutated(random_, serial) for serial in range(MUTATED_LINES))
    lines = list(answered_lines(stream, limit))
    counts: dict[str, int] = {}
    started = time.monotonic()
    with Peer(server.port) as peer, in_background(lambda: _send_in_pieces(peer, stream, random_)):
        for number, line in lines:
            reply = peer.reply()
            counts[outcome(reply)] = counts.get(outcome(reply), 0) + 1
            assert fault(line, number, reply, limit) is None, (fault(line, number, reply, limit), line, reply)
        assert peer.rest() == [], "more replies than lines"
    record_figures(
        "mutated lines", rounds=MUTATED_LINES, answered=len(lines), took_s=time.monotonic() - started, **counts
    )

    assert counts.keys() >= {"stored", "batch", "ok", "bad_json", "bad_event", "bad_line", "bad_command", "too_long"}
    assert server.ask("HEALTH")["health"] == "healthy"
    assert "Traceback" not in server.log
    assert " ERROR " not in server.log


def _send_in_pieces(peer: Peer, stream: bytes, random_: random.Random) -> None:
    start = 0
    while start < len(stream):
        end = start + random_.choice((1, 100, 10_000, 200_000))
        peer.send(stream[start:end])
        start = end
    peer.half_close()
