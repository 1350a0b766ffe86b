"""Replies in the order of their lines, and commands when it is their turn: as tables, without a server."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aggregator.server.outbox import Outbox, Place


async def carry_out(place: Place) -> None:
    """A command; the outbox only stores it."""


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(muted=False)


# --- order


@pytest.mark.parametrize(
    ("filled", "out"),
    [
        ([0, 1, 2], [b"0", b"1", b"2"]),
        ([2, 1, 0], [b"", b"", b"012"]),
        ([1, 0, 2], [b"", b"01", b"2"]),
        ([0, 2, 1], [b"0", b"", b"12"]),
        ([1, 2], [b"", b""]),
    ],
)
def test_replies_go_out_in_the_order_of_their_lines(outbox: Outbox, filled: list[int], out: list[bytes]) -> None:
    places = [outbox.reserve(1) for _ in range(3)]
    taken = []
    for number in filled:
        outbox.fill(places[number], b"%d" % number)
        taken.append(outbox.take())

    assert taken == out
    assert outbox.empty == (len(filled) == 3)


def test_all_that_can_go_out_goes_at_once_and_only_once(outbox: Outbox) -> None:
    for number in range(3):
        outbox.fill(outbox.reserve(1), b"%d" % number)

    assert outbox.take() == b"012"
    assert outbox.take() == b""


def test_lines_are_unanswered_until_their_reply_goes_out(outbox: Outbox) -> None:
    events, batch, last = outbox.reserve(100), outbox.reserve(3), outbox.reserve(0)
    assert outbox.unanswered == 103
    outbox.fill(batch, b"batch")
    outbox.fill(last, b"bye")
    outbox.take()
    assert outbox.unanswered == 103
    outbox.fill(events, b"acks")
    assert outbox.unanswered == 103
    assert outbox.take() == b"acksbatchbye"
    assert outbox.unanswered == 0


def test_an_empty_reply_is_a_reply(outbox: Outbox) -> None:
    outbox.fill(outbox.reserve(1), b"")
    outbox.fill(outbox.reserve(1), b"next")

    assert outbox.take() == b"next"
    assert outbox.empty


# --- commands


def test_a_command_may_start_when_everything_before_it_has_gone_out(outbox: Outbox) -> None:
    event = outbox.reserve(1)
    command = outbox.reserve(1, carry_out)
    assert outbox.command is None
    outbox.fill(event, b"ack")
    assert outbox.command is None, "filled is not out yet"
    outbox.take()
    assert outbox.command is command


def test_a_command_that_is_answered_is_not_started_again(outbox: Outbox) -> None:
    command = outbox.reserve(1, carry_out)
    assert outbox.command is command
    outbox.fill(command, b"answer")
    assert outbox.command is None
    assert outbox.take() == b"answer"
    assert outbox.command is None


def test_commands_have_their_turn_one_after_the_other(outbox: Outbox) -> None:
    first, event, second = outbox.reserve(1, carry_out), outbox.reserve(1), outbox.reserve(1, carry_out)
    outbox.fill(event, b"ack ")
    assert outbox.take() == b""
    outbox.fill(first, b"first ")
    assert outbox.take() == b"first ack "
    assert outbox.command is second


# --- muted


def test_muted_nothing_goes_out_any_more(outbox: Outbox) -> None:
    waiting = outbox.reserve(1)
    outbox.fill(outbox.reserve(1), b"filled")
    outbox.mute()
    outbox.fill(waiting, b"filled later")
    outbox.fill(outbox.reserve(1), b"reserved later")

    assert outbox.take() == b""
    assert outbox.empty
    assert outbox.muted
    assert outbox.unanswered == 0


@pytest.mark.parametrize(
    ("filled", "command", "still_unanswered"),
    [
        (False, False, 5),  # an event that is being stored: it still counts
        (True, False, 0),  # a reply that no client waits for any more
        (False, True, 0),  # a command that has not started, or is being carried out
        (True, True, 0),
    ],
)
def test_muted_only_what_is_being_stored_counts(
    outbox: Outbox, filled: bool, command: bool, still_unanswered: int
) -> None:
    blocking = outbox.reserve(0)
    place = outbox.reserve(5, carry_out if command else None)
    if filled:
        outbox.fill(place, b"reply")
    outbox.mute()
    assert outbox.unanswered == still_unanswered
    assert outbox.command is None

    if not filled:
        outbox.fill(place, b"")
    outbox.fill(blocking, b"")
    assert outbox.unanswered == 0, "a command that ends later does not count a second time"


def test_muted_twice_nothing_counts_twice(outbox: Outbox) -> None:
    waiting = outbox.reserve(2)
    outbox.fill(outbox.reserve(3), b"reply")
    outbox.mute()
    outbox.mute()
    assert outbox.unanswered == 2
    outbox.fill(waiting, b"")
    assert outbox.unanswered == 0


def test_muted_from_the_start_it_only_counts() -> None:
    outbox = Outbox(muted=True)
    first, second = outbox.reserve(10), outbox.reserve(20)
    assert outbox.unanswered == 30
    assert outbox.empty
    outbox.fill(second, b"")
    assert outbox.unanswered == 10
    outbox.fill(first, b"")
    assert outbox.unanswered == 0
    assert outbox.take() == b""


# --- whatever happens


class OutboxMachine(RuleBasedStateMachine):
    """Any calls in any order, compared with a list of the replies that have to go out."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(muted=False)
        self.order: deque[tuple[int, Place]] = deque()
        self.open: list[tuple[int, Place]] = []  # reserved, and not filled yet
        self.replies: dict[int, bytes] = {}
        self.number = 0

    @rule(lines=st.integers(0, 5), command=st.booleans())
    def reserve(self, lines: int, command: bool) -> None:
        self.number += 1
        place = self.outbox.reserve(lines, carry_out if command else None)
        self.open.append((self.number, place))
        if not self.outbox.muted:
            self.order.append((self.number, place))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        number, place = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.replies[number] = b"<%d>" % number
        self.outbox.fill(place, self.replies[number])

    @rule()
    def take(self) -> None:
        ready = []
        while self.order and self.order[0][0] in self.replies:
            ready.append(self.replies[self.order.popleft()[0]])
        assert self.outbox.take() == b"".join(ready)

    @precondition(lambda self: self.number > 10)
    @rule()
    def mute(self) -> None:
        self.outbox.mute()
        self.order.clear()

    @invariant()
    def counts(self) -> None:
        waiting = {id(place): place.lines for _, place in [*self.open, *self.order]}
        assert self.outbox.unanswered == sum(waiting.values())
        assert self.outbox.empty == (not self.order)
        first = self.order[0] if self.order else None
        may_start = first and first[1].command and first[0] not in self.replies
        assert self.outbox.command is (first[1] if first and may_start else None)


TestOutboxMachine = OutboxMachine.TestCase
TestOutboxMachine.settings = settings(max_examples=200, stateful_step_count=40)
