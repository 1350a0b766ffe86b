"""The filter against a set: "new" is never said of a key that it knows or cannot know yet, and mostly of others."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator import key_filter
from aggregator.key_filter import ALL, KeyFilter


def digests(heads: list[int]) -> bytes:
    return b"".join(head.to_bytes(4) + bytes(28) for head in heads)


def split(keys: KeyFilter, heads: list[int], position: int = 0) -> tuple[list[int], list[int]]:
    maybe = keys.maybe(digests(heads), position)
    return [number for number in range(position, position + len(heads)) if number not in set(maybe)], maybe


some_heads = st.lists(st.integers(0, ALL - 1) | st.sampled_from([0, 1, 7, 8, ALL // 2, ALL - 8, ALL - 1]), max_size=20)


@given(
    steps=st.lists(st.tuples(st.sampled_from(["split", "add"]), some_heads), max_size=8),
    byte_bits=st.integers(0, 12),
    bounds=st.lists(st.integers(0, ALL), min_size=8, max_size=8).map(sorted),
)
def test_a_key_that_was_remembered_or_is_past_the_known_ones_is_never_new(
    steps: list[tuple[str, list[int]]], byte_bits: int, bounds: list[int]
) -> None:
    remembered: set[int] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_filter, "FILTER_BYTES", 1 << byte_bits)
        patch.setattr(key_filter, "_BYTE_SHIFT", 32 - byte_bits)
        patch.setattr(key_filter, "_BIT_SHIFT", 29 - byte_bits)
        keys = KeyFilter()
        for (step, heads), keys.known_below in zip(steps, bounds, strict=False):
            if step == "add":
                keys.add_heads(b"".join(head.to_bytes(4) for head in heads))
            else:
                new, _ = split(keys, heads, 100)
                for position in new:
                    head = heads[position - 100]
                    assert head < keys.known_below
                    assert head not in remembered | set(heads[: position - 100])
            remembered.update(heads)


def test_of_a_key_with_a_bit_of_its_own_it_is_certain() -> None:
    """Heads that differ in more than the last three bits have bits of their own: none is looked up in vain."""
    seeded = random.Random(1)
    heads = [number << 3 | seeded.randrange(8) for number in seeded.sample(range(ALL >> 3), 20_000)]
    keys = KeyFilter()
    keys.add_heads(b"".join(head.to_bytes(4) for head in heads[:10_000]))

    assert split(keys, heads[10_000:]) == (list(range(10_000)), [])
    assert split(keys, heads) == ([], list(range(20_000)))


def test_heads_with_the_same_first_29_bits_share_one() -> None:
    assert split(KeyFilter(), [8, 15, 16, 7]) == ([0, 2, 3], [1])
