"""How far a reader has come in a store that numbers its events in lanes: what server and client must agree on.

Within a lane the numbers rise in the order of commits. The seq of an event is ``number * STRIDE + lane``, so seqs are
unique everywhere. A position is the last number of each lane, as in "17.20.3.8". It is more than the seq of an event,
which says nothing of the other lanes. A store with one order of events has numbers instead: there a position is a seq.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

STRIDE: Final = 1024
"""A store may have as many lanes, some of them added later."""


def behind(position: str, seqs: Iterable[int]) -> str:
    """The position of a reader who was at ``position`` and had these next. A lane that is new was read up to 0."""
    numbers = position.split(".")
    for seq in seqs:
        number, lane = divmod(seq, STRIDE)
        if lane >= len(numbers):
            numbers += ["0"] * (lane + 1 - len(numbers))
        numbers[lane] = str(number)
    return ".".join(numbers)
