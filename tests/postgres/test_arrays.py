"""Arrays in PostgreSQL's binary format: the server reads the arrays made here, and its own are read here."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.pq import Format

from aggregator.storage.postgres import arrays


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=300))
def test_integers_come_back(values: list[int]) -> None:
    assert list(arrays.read_int4s(arrays.int4s(values))) == values
    assert list(arrays.read_plain_int4s(arrays.plain_int4s(values))) == values


def test_null_is_an_array_without_elements() -> None:
    assert arrays.read_int4s(None) == arrays.read_int8s(None) == ()


def test_integers_that_are_cut_are_noticed() -> None:
    with pytest.raises(ValueError, match="cut"):
        arrays.read_plain_int4s(b"\0\0\0\1\0")


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_the_server_reads_what_is_made(database: str, count: int) -> None:
    keys = [uuid.uuid4() for _ in range(count)]
    numbers = list(range(-1, count - 1))
    texts = [bytes([number % 256]) * number for number in range(count)]
    made: list[tuple[int, Callable[[Sequence[Any]], bytes], list[Any], list[Any]]] = [
        (arrays.UUID, arrays.uuids, [key.bytes for key in keys], keys),
        (arrays.INT4, arrays.int4s, numbers, numbers),
        (arrays.BYTEA, arrays.byteas, texts, texts),
    ]
    with psycopg.connect(database) as connection:
        for element, make, values, expected in made:
            result = connection.pgconn.exec_params(
                b"SELECT $1", [make(values)], [arrays.ARRAY_OF[element]], [Format.BINARY], Format.BINARY
            )
            assert result.get_value(0, 0) == make(values)
            ((found,),) = connection.execute(
                "SELECT %b::" + {arrays.UUID: "uuid", arrays.INT4: "int", arrays.BYTEA: "bytea"}[element] + "[]",
                (expected,),
                binary=True,
            ).fetchall()
            assert found == expected
        result = connection.pgconn.exec_params(
            b"SELECT array_agg(n) FROM generate_series(1, $1) AS all_of(n)",
            [str(count).encode()],
            [arrays.INT8],
            [Format.TEXT],
            Format.BINARY,
        )
        assert list(arrays.read_int8s(result.get_value(0, 0))) == list(range(1, count + 1))
