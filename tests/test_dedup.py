"""A key is stored once, even if it is resent by any client, in a line or a batch, over connections and restarts."""

from __future__ import annotations

import random
from functools import partial

import pytest

from tests.harness.background import in_background
from tests.harness.server_process import ServerProcess
from tests.harness.wire import Json, event, events, exchange

pytestmark = [pytest.mark.fault, pytest.mark.engines]


def seqs(replies: list[Json]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for reply in replies:
        found.setdefault(reply["event_id"], set()).add(reply["seq"])
    return found


def test_a_duplicate_is_found_within_a_line_a_batch_across_connections_and_a_restart(server: ServerProcess) -> None:
    """T21."""
    line = event("e")
    (in_line,) = exchange(server.port, b"[" + line[:-1] + b"," + line[:-1] + b"]\n")
    assert [result["status"] for result in in_line["results"]] == ["stored", "duplicate"]
    seq = in_line["results"][0]["seq"]

    in_batch = exchange(server.port, line * 100)
    server.stop()
    server.restart()
    after_restart = exchange(server.port, line)
    server.kill()
    server.restart()
    after_kill = exchange(server.port, line)

    for reply in in_batch + after_restart + after_kill:
        assert (reply["status"], reply["seq"]) == ("duplicate", seq)
    assert server.ask("STATS")["stored_total"] == 1


def test_the_key_is_topic_and_event_id_and_nothing_else(server: ServerProcess) -> None:
    replies = exchange(
        server.port,
        event("e", payload='{"first":1}')
        + event("e", payload='{"second":2}', level='"x"')
        + event("e", topic="u")
        + event("E")
        + event("e ")
        + event("e", topic="t:e"),
    )

    assert [reply["status"] for reply in replies] == ["stored", "duplicate", "stored", "stored", "stored", "stored"]
    assert server.ask("EVENT t e")["event"]["payload"] == {"first": 1}, "the first one is kept"


def test_the_boundary_between_topic_and_event_id_is_part_of_the_key(server: ServerProcess) -> None:
    replies = exchange(server.port, event("bc", topic="a") + event("c", topic="ab") + event("abc", topic="x"))

    assert [reply["status"] for reply in replies] == ["stored"] * 3


def test_eight_clients_sending_the_same_events_store_each_once(server: ServerProcess) -> None:
    """T21."""
    lines = events("e", 3000)
    replies: list[Json] = []

    def client(seed: int) -> None:
        mine = random.Random(seed).sample(lines, len(lines))
        replies.extend(exchange(server.port, b"".join(mine)))

    for one in [in_background(partial(client, seed)) for seed in range(8)]:
        one.finish()

    assert len(replies) == 8 * 3000
    assert sum(reply["status"] == "stored" for reply in replies) == 3000
    assert sum(reply["status"] == "duplicate" for reply in replies) == 7 * 3000
    assert all(len(found) == 1 for found in seqs(replies).values()), "every copy is told the same seq"
    assert {name: found["seq"] for name, found in server.stored("t").items()} == {
        name: seq for name, (seq,) in seqs(replies).items()
    }


def test_seq_only_ever_grows(server: ServerProcess) -> None:
    first = [reply["seq"] for reply in exchange(server.port, b"".join(events("a", 100)))]
    server.kill()
    server.restart()
    second = [reply["seq"] for reply in exchange(server.port, b"".join(events("a", 5) + events("b", 100)))]

    assert first == sorted(set(first))
    assert second[:5] == first[:5]
    assert second[5:] == sorted(set(second[5:]))
    assert second[5] > first[-1]
