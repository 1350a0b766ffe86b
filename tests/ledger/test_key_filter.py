"""The filter against a set: it never calls a known key new, nor one it cannot know yet; it calls most others new."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.storage.sqlite.key_filter import ALL, KeyFilter
from tests.harness import storage


def digests(heads: list[int]) -> bytes:
    return b"".join(head.to_bytes(4) + bytes(28) for head in heads)


def split(keys: KeyFilter, heads: list[int], position: int = 0) -> tuple[list[int], list[int]]:
    maybe = keys.maybe(digests(heads), position)
    assert maybe == sorted(set(maybe) & set(range(position, position + len(heads))))
    old = set(maybe)
    return [number for number in range(position, position + len(heads)) if number not in old], maybe


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
        storage.shrink_filter(patch.setattr, byte_bits)
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


def test_of_a_key_with_a_byte_of_its_own_it_is_certain() -> None:
    seeded = random.Random(1)
    heads = [number << 6 | seeded.randrange(64) for number in seeded.sample(range(ALL >> 6), 20_000)]
    keys = KeyFilter()
    keys.add_heads(b"".join(head.to_bytes(4) for head in heads[:10_000]))

    assert split(keys, heads[10_000:]) == (list(range(10_000)), [])
    assert split(keys, heads) == ([], list(range(20_000)))


def test_a_key_whose_two_bits_others_have_is_looked_up_in_vain() -> None:
    """A byte has 28 pairs of bits, in order: the first is bits 0 and 1, the second 0 and 2, the eighth 1 and 2."""
    assert split(KeyFilter(), [0, 28, 1]) == ([0, 2], [1]), "the same pair"
    assert split(KeyFilter(), [0, 1, 7]) == ([0, 1], [2]), "one bit of each"
    assert split(KeyFilter(), [0, 1, 7 + 64]) == ([0, 1, 2], []), "another byte"


@pytest.mark.timeout(300)  # a busy machine takes two minutes for this many keys
@pytest.mark.parametrize(("keys_a_byte", "least", "most"), [(0.37, 0.01, 0.03), (1.49, 0.09, 0.15)])
def test_few_new_keys_are_looked_up_in_vain(keys_a_byte: float, least: float, most: float) -> None:
    """The filter is as full as one of 64 MiB is with 25 and with 100 million keys."""
    seeded = random.Random(1)
    with pytest.MonkeyPatch.context() as patch:
        storage.shrink_filter(patch.setattr, 16)
        keys = KeyFilter()
        split(keys, [seeded.randrange(ALL) for _ in range(int(keys_a_byte * (1 << 16)))])
        bits = storage.filter_bits(keys)
        in_vain = 0
        for _ in range(5000):
            in_vain += len(split(keys, [seeded.randrange(ALL)])[1])
            storage.set_filter_bits(keys, bits)

    assert least < in_vain / 5000 < most
