"""A reader's position in a store that numbers its events in lanes: the part that server and client must agree on.

Within a lane the numbers rise in the order of commits. The seq of an event is ``number * STRIDE + lane``, so seqs are
unique across lanes. A position is the last number of each lane, as in "17.20.3.8". It is more than the seq of an event,
because a seq says nothing about the other lanes. In a store with one order of events a position is a number, a seq.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

STRIDE: Final = 1024
"""The most lanes that a store may have, including lanes added later."""


def behind(position: str, seqs: Iterable[int]) -> str:
    """The position of a reader that was at ``position`` and then got these events. A new lane was read up to 0."""
    numbers = position.split(".")
    for seq in seqs:
        number, lane = divmod(seq, STRIDE)
        if lane >= len(numbers):
            numbers += ["0"] * (lane + 1 - len(numbers))
        numbers[lane] = str(number)
    return ".".join(numbers)
