"""Why reading is paused, and when it is resumed, with a transport that only records calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.server.gate import Gate, Reason


class FakeTransport:
    """A transport as a gate uses it: pausing twice is allowed, but nothing may be asked of one that is closing."""

    def __init__(self) -> None:
        self.reading = True
        self.closing = False
        self.changes: list[str] = []

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self._set(False)

    def resume_reading(self) -> None:
        self._set(True)

    def _set(self, reading: bool) -> None:
        assert not self.closing
        if reading != self.reading:
            self.changes.append("resume" if reading else "pause")
        self.reading = reading


class Bench:
    """A gate for such a transport, and what is done when it opens."""

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.opened = 0
        self.when_open: Callable[[], None] = lambda: None
        self.gate = Gate(self._on_open)
        self.gate.attach(cast(asyncio.Transport, self.transport))

    def _on_open(self) -> None:
        assert not self.transport.reading or self.transport.closing, "before reading goes on"
        self.opened += 1
        self.when_open()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_it_pauses_at_the_first_reason_and_resumes_after_the_last(bench: Bench) -> None:
    assert bench.gate.open
    for reason in Reason:
        assert bench.gate.shut(reason)
        assert bench.gate.is_shut_for(reason)
    assert not bench.gate.open
    for reason in Reason:
        assert bench.opened == 0
        bench.gate.lift(reason)
        assert not bench.gate.is_shut_for(reason)

    assert bench.gate.open
    assert bench.opened == 1
    assert bench.transport.changes == ["pause", "resume"]


def test_a_reason_that_holds_already_is_not_a_new_one(bench: Bench) -> None:
    assert bench.gate.shut(Reason.INTAKE)
    assert not bench.gate.shut(Reason.INTAKE)
    bench.gate.lift(Reason.INTAKE)

    assert bench.gate.open
    assert bench.transport.changes == ["pause", "resume"]


def test_a_reason_that_does_not_hold_is_lifted_without_effect(bench: Bench) -> None:
    bench.gate.lift(Reason.SHARE)
    bench.gate.shut(Reason.INTAKE)
    bench.gate.lift(Reason.SHARE)

    assert bench.opened == 0
    assert not bench.gate.open
    assert bench.transport.changes == ["pause"]


def test_what_is_done_when_it_opens_may_find_a_new_reason(bench: Bench) -> None:
    def shut() -> None:
        bench.gate.shut(Reason.TURN)

    bench.when_open = shut
    bench.gate.shut(Reason.INTAKE)
    bench.gate.lift(Reason.INTAKE)
    assert not bench.gate.open
    assert not bench.transport.reading

    bench.when_open = lambda: None
    bench.gate.lift(Reason.TURN)
    assert bench.transport.reading
    assert bench.opened == 2


def test_a_reason_that_comes_and_goes_while_it_opens_resumes_once(bench: Bench) -> None:
    def come_and_go() -> None:
        bench.when_open = lambda: None
        bench.gate.shut(Reason.TURN)
        bench.gate.lift(Reason.TURN)

    bench.when_open = come_and_go
    bench.gate.shut(Reason.INTAKE)
    bench.gate.lift(Reason.INTAKE)

    assert bench.gate.open
    assert bench.transport.changes == ["pause", "resume"]


def test_nothing_is_asked_of_a_transport_that_is_closing(bench: Bench) -> None:
    bench.transport.closing = True
    bench.gate.shut(Reason.INTAKE)
    bench.gate.lift(Reason.INTAKE)

    assert bench.opened == 1, "lines that were read are still taken"
    assert bench.transport.changes == []


def test_nor_of_one_that_has_begun_to_close_meanwhile(bench: Bench) -> None:
    def close() -> None:
        bench.transport.closing = True

    bench.when_open = close
    bench.gate.shut(Reason.INTAKE)
    bench.gate.lift(Reason.INTAKE)

    assert bench.transport.changes == ["pause"]


def test_after_the_end_of_the_stream_nothing_is_resumed(bench: Bench) -> None:
    bench.gate.shut(Reason.INTAKE)
    bench.gate.end()
    bench.gate.lift(Reason.INTAKE)

    assert bench.gate.open
    assert bench.opened == 1
    assert bench.transport.changes == ["pause"]


def test_without_a_transport_it_only_remembers() -> None:
    opened = []
    gate = Gate(lambda: opened.append(True))
    gate.shut(Reason.INTAKE)
    assert not gate.open
    gate.lift(Reason.INTAKE)

    assert gate.open
    assert opened == [True]


@given(
    steps=st.lists(st.tuples(st.booleans(), st.sampled_from(list(Reason))), max_size=30),
    again=st.lists(st.none() | st.sampled_from(list(Reason)), max_size=6),
)
def test_it_reads_exactly_while_there_is_no_reason(
    steps: list[tuple[bool, Reason]], again: list[Reason | None]
) -> None:
    bench = Bench()
    reasons: set[Reason] = set()

    def open_and_maybe_shut() -> None:
        if again and (reason := again.pop()):
            bench.gate.shut(reason)
            reasons.add(reason)

    bench.when_open = open_and_maybe_shut
    for shut, reason in steps:
        if shut:
            assert bench.gate.shut(reason) == (reason not in reasons)
            reasons.add(reason)
        else:
            reasons.discard(reason)
            bench.gate.lift(reason)
        assert bench.gate.open == bench.transport.reading == (not reasons)
        assert all(bench.gate.is_shut_for(one) == (one in reasons) for one in Reason)
