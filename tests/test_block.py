"""Blocks: each event of a batch is read back under its seq, through Python and through the view for people."""

from __future__ import annotations

import contextlib
import sqlite3

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aggregator.storage import block as blocks_of_all
from aggregator.storage.sqlite import block, schema
from tests.harness import storage

some_events = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", 'quo"te', "日"]),
        st.sampled_from([b"", b"{}", b'{"n":1}', '{"é":"日"}'.encode(), b'{"x":"' + b"x" * 40 + b'"}']),
    ),
    max_size=40,
)


@given(batch=some_events, events=st.integers(1, 9), size=st.sampled_from([1, 10, 60]))
@example([("a", b"")] * 3 + [("b", b"{}")], 2, 10)
def test_what_is_cut_into_blocks_comes_back(batch: list[tuple[str, bytes]], events: int, size: int) -> None:
    topics, json = [topic for topic, _ in batch], [text for _, text in batch]
    data = b"".join(json)
    with pytest.MonkeyPatch.context() as patch:
        storage.shrink_blocks(patch.setattr, events, size)
        blocks = list(blocks_of_all.cut(topics, json))
    found = []
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(schema.SCHEMA)
        for one in blocks:
            part = data[one.start : one.start + one.ends[-1]]
            columns = [orjson.dumps(column).decode() for column in (one.topics, one.numbers, one.ends)]
            database.execute("INSERT INTO blocks VALUES (?, 0, ?, ?, ?, ?)", (1 + one.first, *columns, part))
            in_block = list(block.events(1 + one.first, columns[1], columns[2], part))
            found += [(seq, one.topics[number], text) for seq, number, text in in_block]
            for number, topic in enumerate(one.topics):
                of_topic = [(seq, text) for seq, other, text in in_block if other == number]
                seqs, texts = block.columns(1 + one.first, columns[0], columns[1], columns[2], part, topic.__eq__)
                assert list(zip(seqs, texts, strict=True)) == of_topic
                assert of_topic, "each topic that is named has events"
            assert len(one.ends) <= events
            assert len(part) <= size or len(in_block) == 1
        viewed = database.execute("SELECT seq, topic, json FROM events ORDER BY seq").fetchall()

    expected = [(seq, topic, text) for seq, (topic, text) in enumerate(batch, 1) if text]
    assert found == expected
    assert viewed == [(seq, topic, text.decode()) for seq, topic, text in expected]


@pytest.mark.parametrize(
    ("numbers", "ends", "data"),
    [
        ("[0,0]", "[2,4]", b"{}{"),
        ("[0,0]", "[2,4]", b"{}{}{}"),
        ("[0,0]", "[2,", b"{}{}"),
        ("null", "[2,4]", b"{}{}"),
        ("[0]", "[2,4]", b"{}{}"),
        ("[0,0]", '["2",4]', b"{}{}"),
        ("[0,0]", "[9,4]", b"{}{}"),
    ],
    ids=["data cut", "data added", "JSON cut", "no numbers", "too few numbers", "no number", "ends not in order"],
)
def test_a_damaged_row_is_noticed(numbers: str, ends: str, data: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        list(block.events(1, numbers, ends, data))
