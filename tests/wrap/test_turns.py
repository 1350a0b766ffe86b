"""T51 on the wrap port: what takes long takes several turns of the event loop, however few bytes it has."""

from __future__ import annotations

import pytest

from aggregator.access.identity import ANONYMOUS
from aggregator.event import Events
from aggregator.server.port import WRAP
from aggregator.server.wrap_inbox import WrapInbox
from tests.harness.state import state

READ_BYTES = 256 << 10
"""What one read may bring."""


@pytest.fixture
def inbox() -> WrapInbox:
    made = WrapInbox(state(), WRAP)
    made.identify(ANONYMOUS)
    return made


def turns(inbox: WrapInbox) -> list[int]:
    """The number of events in each turn, until nothing waits."""
    counts = []
    while inbox:
        counts.append(sum(len(found) for found in inbox.turn() if isinstance(found, Events)))
    return counts


def test_of_arrays_with_many_objects_each_takes_a_turn(inbox: WrapInbox) -> None:
    """All that one read may bring once took one turn of two seconds."""
    array = b"[" + b",".join([b"{}"] * 10_000) + b"]\n"
    count = READ_BYTES // len(array)
    inbox.feed(b"a line\n" + array * count)  # behind a line, an array is a text of its own
    first, *others = turns(inbox)
    assert (first, others) == (1 + 10_000, [10_000] * (count - 1))


def test_json_without_an_end_takes_several_turns(inbox: WrapInbox) -> None:
    """Each quote is one step of the scanner."""
    inbox.feed(b"{" + b'"' * READ_BYTES)
    counts = turns(inbox)
    assert sum(counts) == 0
    assert len(counts) >= 4
