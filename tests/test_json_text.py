"""JSON as text: what decodes, how deep it is, and where the values of an array or an object stand in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator import json_text
from aggregator.json_text import MAX_DEPTH, NotJson, TooDeep


@pytest.mark.parametrize(
    "text",
    [b"{}", b"[]", b'"x"', b"7", b"null", b'{"a":[1,2,{"b":null}]}', b' { "a" : 1 } ', '{"é":"日本語"}'.encode()],
)
def test_json_is_decoded(text: bytes) -> None:
    assert json_text.decode(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "empty document"),
        (b"{", "unexpected end of data at character 2"),
        (b'{"a":1,}', "trailing comma is not allowed at character 7"),
        (b'{"a":01}', "number with leading zero is not allowed at character 6"),
        (b'{"a":NaN}', ""),
        (b'{"a":-Infinity}', ""),
        (b'{"a":1}{"b":2}', ""),
        (b'{"a":"\xff"}', "not valid UTF-8 at byte 7"),
        (b'{"a":"\xed\xa0\x80"}', "not valid UTF-8 at byte 7"),
    ],
)
def test_what_is_not_json_is_said_with_its_place(text: bytes, why: str) -> None:
    with pytest.raises(NotJson) as caught:
        json_text.decode(text)
    assert why in str(caught.value)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1E+999", "9" * 400 + ".5", "1" + "0" * 400 + "e5"])
def test_a_number_too_large_for_a_double_is_a_number(number: str) -> None:
    found = json_text.decode(b'{"a":%s,"1e400":"1e400"}' % number.encode())

    assert isinstance(found["a"], int | float)
    assert found["1e400"] == "1e400", "a text that looks like one is left alone"


@pytest.mark.parametrize("bad", ["1.5.5", "--5", "1e5e5", "01", "1.", "+1", ".5", "1e", "0x1", "nul"])
def test_a_huge_number_makes_no_bad_one_good(bad: str) -> None:
    with pytest.raises(NotJson):
        json_text.decode(b"[1e400," + bad.encode() + b"]")


def test_where_the_decoder_gives_up_it_is_too_deep() -> None:
    with pytest.raises(TooDeep, match="nested deeper than 250 levels"):
        json_text.decode(b"[" * 100_000)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
def test_depth_counts_arrays_and_objects(opening: bytes, closing: bytes) -> None:
    each = len(closing)
    levels = MAX_DEPTH // each

    assert not json_text.is_too_deep(opening * levels + b"1" + closing * levels)
    assert json_text.is_too_deep(b"[" + opening * levels + b"1" + closing * levels + b"]")


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"[]," * 1000 + b"[]]",
        b'{"a":"' + b"[" * 1000 + b'"}',
        b'{"a":"\\"' + b"[" * 1000 + b'\\\\"}',
        b'["' + b'\\"' * 500 + b"[" * 500 + b'"]',
    ],
    ids=["wide", "in a string", "behind an escaped quote", "behind many"],
)
def test_what_is_wide_or_quoted_is_not_deep(text: bytes) -> None:
    json.loads(text)
    assert not json_text.is_too_deep(text)


def depth(value: Any) -> int:
    """By recursion, which is what the product must do without."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(value=json_values, around=st.integers(MAX_DEPTH - 6, MAX_DEPTH + 1))
def test_depth_is_what_recursion_counts(value: Any, around: int) -> None:
    text = b"[" * around + json.dumps(value).encode() + b"]" * around

    assert json_text.is_too_deep(text) == (around + depth(value) > MAX_DEPTH)


@given(st.lists(json_values, max_size=5), st.sampled_from([None, 1]), st.text(" \t\r\n", max_size=3))
def test_an_array_is_cut_into_its_members(values: list[Any], indent: int | None, space: str) -> None:
    texts = [json.dumps(value, indent=indent, ensure_ascii=False) for value in values]
    before = '{"x": '
    text = f"{before}[{space}" + f"{space},{space}".join(texts) + f"{space}]}}"

    assert json_text.elements(text, len(before)) == texts


def test_members_too_deep_for_the_scanner_are_too_deep() -> None:
    with pytest.raises(TooDeep):
        json_text.elements("[" * 100_000 + "]" * 100_000, 0)


@given(
    st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), json_values), min_size=1),
    st.text(" \t\r\n", max_size=3),
)
def test_the_last_member_of_an_object_is_found(members: list[tuple[str, Any]], space: str) -> None:
    texts = [f"{json.dumps(name)}{space}:{space}{json.dumps(value)}" for name, value in members]
    text = f"{{{space}" + f"{space},{space}".join(texts) + f"{space}}}"

    assert text[json_text.last_member(text) :] == f"{json.dumps(members[-1][1])}{space}}}"


def test_a_last_member_too_deep_for_the_scanner_is_too_deep() -> None:
    with pytest.raises(TooDeep):
        json_text.last_member('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")


def test_digits_are_not_looked_at() -> None:
    """int() refuses 4,301 digits."""
    text = "[" + "9" * 5000 + "]"

    assert json_text.elements(text, 0) == ["9" * 5000]
