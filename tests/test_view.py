"""The view ``events``, as people query it with sqlite3: every column, and only the blocks that a condition names."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aggregator.event import Event
from tests.harness import ROOT, storage

BATCHES = 30
IN_A_BATCH = 10


def event(number: int) -> Event:
    names = (
        f'"topic":"t{number % 3}","event_id":"e{number}","timestamp":"2026-11-22T10:00:00Z","source":"s{number % 2}"'
    )
    return Event.of(f"t{number % 3}", f"e{number}", f'{{{names},"payload":{{"n":{number}}}}}'.encode())


@pytest.fixture
async def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with blocks of at most four events, every tenth event sent twice, and one batch a second."""
    storage.shrink_blocks(monkeypatch.setattr, events=4, size_bytes=64 * 1024)
    now = [0]
    storage.set_clock(monkeypatch.setattr, lambda: now[0])
    store = await storage.open_store(tmp_path / "events.db")
    for batch in range(BATCHES):
        now[0] = 1000 * (batch + 1)
        first = batch * IN_A_BATCH
        await storage.append(
            store, [event(number) for number in (max(0, first - 1), *range(first, first + IN_A_BATCH))]
        )
    await store.close()
    return store.database.path


@pytest.fixture
def database(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as database:
        yield database


def test_every_column(database: sqlite3.Connection) -> None:
    rows = database.execute(
        "SELECT seq, topic, event_id, timestamp, source, received_at, json, block FROM events ORDER BY seq"
    ).fetchall()
    assert [row[1:7] for row in rows] == [
        (
            one.topic,
            one.event_id,
            "2026-11-22T10:00:00Z",
            f"s{number % 2}",
            1000 * (number // 10 + 1),
            one.json.decode(),
        )
        for number, one in enumerate(map(event, range(BATCHES * IN_A_BATCH)))
    ]
    firsts = [first for (first,) in database.execute("SELECT first_seq FROM blocks ORDER BY first_seq")]
    assert all(row[7] == max(first for first in firsts if first <= row[0]) for row in rows)


@pytest.mark.parametrize(
    ("condition", "read"),
    [
        ("WHERE block > 300", "first_seq > 300"),
        ("WHERE block BETWEEN 100 AND 103", "first_seq BETWEEN 100 AND 103"),
        ("WHERE block > 96 AND block <= 103 AND seq BETWEEN 100 AND 103", "first_seq BETWEEN 97 AND 103"),
        ("WHERE received_at > 28000", "received_at > 28000"),
        ("WHERE received_at BETWEEN 3000 AND 3999", "received_at = 3000"),
        ("ORDER BY block DESC, seq DESC LIMIT 3", "first_seq > 320"),
        ("ORDER BY received_at DESC LIMIT 3", "received_at > 29000"),
    ],
)
def test_a_condition_reads_only_the_blocks_that_it_needs(
    database: sqlite3.Connection, condition: str, read: str
) -> None:
    """Every other block is damaged, so a query that reads one fails."""
    sql = f"SELECT seq, topic, json FROM events {condition}"
    expected = database.execute(sql).fetchall()
    assert expected
    database.execute(f"UPDATE blocks SET ends = 'damaged', numbers = 'damaged' WHERE NOT ({read})")
    assert database.execute(sql).fetchall() == expected
    with pytest.raises(sqlite3.OperationalError, match="malformed JSON"):
        database.execute("SELECT max(seq) FROM events").fetchall()


def test_what_readme_shows(path: Path) -> None:
    """Its queries are run exactly as they are there."""
    questions = re.findall(
        r"""sqlite3 'file:[^']*' (['"])(SELECT .*?)\1(?:\s|$)""", (ROOT / "README.md").read_text(), re.M
    )
    assert len(questions) == 3
    with closing(sqlite3.connect(path)) as database:
        (newest, behind, recent) = (database.execute(question).fetchall() for _, question in questions)
    assert [(seq, topic) for seq, topic, _ in newest] == [(330 - back, f"t{(299 - back) % 3}") for back in range(10)]
    assert (behind, recent) == ([], [])
