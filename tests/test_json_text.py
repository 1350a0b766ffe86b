"""JSON as text: what decodes, how deep it is, and where the values of an array or an object are in it."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given, settings
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


NUMBERS = ["1e400", "-1e400", "1E+999", "9" * 400 + ".5", "1" + "0" * 400 + "e5"]
HALF_PAIRS = [
    r"\ud83d", r"\uDE42", r"x\ud83d y", r"\ud83d\n", r"\ud83d\u0041", r"\ude42\ud83d", r"\ud83d\ud83d\ude42",
    r"\ud83d\\", r"\\\ud83d", r"\ud83d\/", r"\udbff\udbff", r"\udfff",
]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_too_large_for_a_double_is_a_number(number: str) -> None:
    found = json_text.decode(b'{"a":%s,"1e400":"1e400"}' % number.encode())

    assert isinstance(found["a"], int | float)
    assert found["1e400"] == "1e400", "a text that looks like one is left alone"


@pytest.mark.parametrize("text", HALF_PAIRS)
@pytest.mark.parametrize("form", ['"%s"', '{"%s":[]}', '[1e400,"%s"]', '["%s",1e400]'])
def test_half_of_a_surrogate_pair_is_text(text: str, form: str) -> None:
    whole = form.replace("1e400", "5") % text
    found = json_text.decode((form % text).encode())

    assert str(found).replace("1e400", "5") == str(json.loads(whole))


def test_a_whole_surrogate_pair_is_its_character() -> None:
    assert json_text.decode(rb'["\ud83d\ude42","\ud83d",1e400]')[0] == "🙂"


def test_a_backslash_before_what_looks_like_one_is_a_backslash() -> None:
    assert json_text.decode(rb'"\\ud83d"') == r"\ud83d"


@pytest.mark.parametrize("bad", [r"\ud83", r"\ud83d\u", r"\ud83d\ude4", r"\ud83d\x", "\\ud83d\t", "\\ud83d\0"])
def test_half_of_a_surrogate_pair_makes_no_bad_text_good(bad: str) -> None:
    for form in ('"%s"', '["%s"]', '{"%s":1}', r'["\ud83d","%s"]', r'[1e400,"%s"]'):
        with pytest.raises(NotJson):
            json_text.decode((form % bad).encode())


def test_half_of_a_surrogate_pair_in_utf8_is_no_utf8() -> None:
    with pytest.raises(NotJson, match="not valid UTF-8 at byte 10"):
        json_text.decode(rb'"\ud83d x' + b'\xed\xa0\xbd"')


@pytest.mark.parametrize(
    "bad", ["1.5.5", "--5", "1e5e5", "01", "1.", "+1", ".5", "1e", "0x1", "nul", "NaN", "-Infinity"]
)
def test_what_only_one_decoder_refuses_makes_nothing_bad_good(bad: str) -> None:
    for text in (f"[1e400,{bad}]", rf'["\ud83d",{bad}]', rf'{{"\ud83d":{bad}}}'):
        with pytest.raises(NotJson):
            json_text.decode(text.encode())


odd_json = st.recursive(
    st.sampled_from([*NUMBERS, "0", "-0.0", "1.10", "true", "null", "123456789012345678901234567890", "1e-999"])
    | st.sampled_from([f'"{text}"' for text in HALF_PAIRS])
    | st.text(max_size=4).map(json.dumps)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4).map(partial(json.dumps, ensure_ascii=False)),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda parts: "[" + " , ".join(parts) + "]")
        | st.lists(st.tuples(st.text(max_size=2).map(json.dumps), inner), max_size=4).map(
            lambda parts: "{" + ",".join(f"{name} : {value}" for name, value in parts) + "}"
        )
    ),
    max_leaves=12,
)
"""The text of a value: any JSON, including half pairs, huge numbers, and repeated names."""


@settings(max_examples=1000)
@given(
    text=odd_json,
    at=st.integers(0, 200),
    change=st.sampled_from(["", '"', "\\", "]", "{", ",", "1e9", "\\ud83d", "\0"]),
)
@example(text='"x"', at=200, change="")
def test_it_decodes_what_python_decodes(text: str, at: int, change: str) -> None:
    """A text, and the same text with a change somewhere, after which most texts are no longer JSON."""
    for one in (text, text[:at] + change + text[at:]):
        expected = loosely(one)
        try:
            found = json_text.decode(one.encode())
        except NotJson:
            assert expected is None, one
        else:
            assert without_numbers(found) == expected, one


def loosely(text: str) -> Any:
    """The value that Python's own parser returns, in a list, with every number as 0; None if the text is not JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return [json.loads(text, parse_int=lambda _: 0, parse_float=lambda _: 0, parse_constant=refuse)]
    except ValueError:
        return None


def without_numbers(value: Any) -> Any:
    """A decoded value in the form that ``loosely`` returns."""

    def simplify(one: Any) -> Any:
        if isinstance(one, dict):
            return {name: simplify(inner) for name, inner in one.items()}
        if isinstance(one, list):
            return list(map(simplify, one))
        return 0 if type(one) in (int, float) else one

    return [simplify(value)]


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
    """The depth by recursion, which the product must do without. An object is a tuple of its members' values."""
    return 1 + max(map(depth, value), default=0) if isinstance(value, list | tuple) else 0


def depth_of_text(text: str) -> int:
    return depth(json.loads(text, parse_int=len, object_pairs_hook=lambda pairs: tuple(value for _, value in pairs)))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=1000)
@given(text=odd_json, around=st.integers(MAX_DEPTH - 6, MAX_DEPTH + 1))
@example(text=r'["\\\"]",{"a":[[[[]]]],"a":1}]', around=MAX_DEPTH - 6)
def test_depth_is_what_recursion_counts(text: str, around: int) -> None:
    deep = "[" * around + text + "]" * around

    assert json_text.is_too_deep(deep.encode()) == (around + depth_of_text(text) > MAX_DEPTH)


@pytest.mark.parametrize("rest", [b"1", b'"\\ud83d"', b"1e400"])
@pytest.mark.parametrize(
    ("levels", "too_deep"), [(MAX_DEPTH - 1, False), (MAX_DEPTH, True), (1000, True), (100_000, True)]
)
def test_a_repeated_name_hides_no_depth(levels: int, too_deep: bool, rest: bytes) -> None:
    """A reply shows the event with both members, and a parser reads both."""
    text = b'{"a":' + b"[" * levels + b"]" * levels + b',"a":%s,"long":"%s"}' % (rest, b"x" * 1000)

    assert json_text.is_too_deep(text) is too_deep


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
    st.lists(st.tuples(st.text(max_size=3), json_values), min_size=1, max_size=3),
    st.text(" \t\r\n", max_size=3),
)
def test_the_only_member_of_an_object_is_found(members: list[tuple[str, Any]], space: str) -> None:
    texts = [f"{json.dumps(name)}{space}:{space}{json.dumps(value)}" for name, value in members]
    text = f"{{{space}" + f"{space},{space}".join(texts) + f"{space}}}"
    start = json_text.only_member(text)

    if len(members) > 1:
        assert start is None
    else:
        assert text[start:] == f"{json.dumps(members[0][1])}{space}}}"


def test_an_only_member_too_deep_for_the_scanner_is_too_deep() -> None:
    with pytest.raises(TooDeep):
        json_text.only_member('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")


def test_digits_are_not_looked_at() -> None:
    """int() refuses 4,301 digits."""
    text = "[" + "9" * 5000 + "]"

    assert json_text.elements(text, 0) == ["9" * 5000]
