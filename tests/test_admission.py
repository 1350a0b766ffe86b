"""Places for connections: which get one, which wait to be known, and which are dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.access.identity import Identity
from aggregator.config import Config
from aggregator.server import admission as module
from aggregator.server.admission import MAX_LEAVING, Admission, Slot
from aggregator.server.peer_log import PeerLog
from aggregator.wire import Code, Failure

CONFIG = Config(max_connections=6, address_connections=4, max_pending=4, auth_timeout_s=10)


def new_admission(**changes: Any) -> Admission:
    return Admission(dataclasses.replace(CONFIG, **changes), PeerLog())


class Holder:
    """A connection that only records what was done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.on_abort: Callable[[], None] = lambda: None

    def abort(self) -> None:
        self.done.append("abort")
        self.on_abort()

    def expire(self) -> None:
        self.done.append("expire")

    def renew(self) -> None:
        self.done.append("renew")

    def disconnect(self, failure: Failure) -> None:
        self.done.append(failure.code)

    def about(self) -> dict[str, Any]:
        return {}


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def enter(admission: Admission, origin: str = "a") -> tuple[Slot, Holder]:
    holder = Holder()
    return admission.enter(origin, holder), holder


def stranger(admission: Admission, origin: str = "a") -> tuple[Slot, Holder]:
    slot, holder = enter(admission, origin)
    holder.on_abort = lambda: admission.leave(slot)
    admission.add_pending(slot)
    return slot, holder


def metrics(admission: Admission) -> dict[str, Any]:
    return {metric.name: metric.value for metric in admission.metrics()}


def test_the_caps_of_all_and_of_one_address() -> None:
    admission = new_admission()
    slots = [enter(admission, "a")[0] for _ in range(4)]

    failure = admission.why_not("a")
    assert failure
    assert failure.detail == "4 connections from a are open; try again later"
    assert admission.why_not("b") is None
    slots += [enter(admission, "b")[0] for _ in range(2)]
    failure = admission.why_not("c")
    assert failure
    assert (failure.code, failure.detail) == (Code.BUSY, "6 connections are open; try again later")

    for slot in slots:
        admission.leave(slot)
        admission.leave(slot)
    assert len(admission) == 0
    assert admission.why_not("a") is None
    assert not admission._origins


def test_the_oldest_stranger_goes_when_there_are_too_many() -> None:
    admission = new_admission(max_connections=99)
    holders = [stranger(admission, f"address {number}")[1] for number in range(7)]

    assert [holder.done for holder in holders] == [["abort"]] * 3 + [[]] * 4
    assert metrics(admission) == {"pending": 4, "evicted": 3}


def test_the_oldest_of_an_address_goes_when_there_are_too_many_of_it() -> None:
    admission = new_admission(max_connections=99, address_connections=99, max_pending=8)
    other = stranger(admission, "b")[1]
    holders = [stranger(admission, "a")[1] for _ in range(5)]

    assert [holder.done for holder in holders] == [["abort"]] * 3 + [[]] * 2
    assert other.done == []


def test_whoever_is_known_is_never_evicted() -> None:
    admission = new_admission(max_connections=99, address_connections=99)
    slot, holder = stranger(admission)
    admission.identify(slot, Identity("web"))
    for _ in range(20):
        stranger(admission)

    assert holder.done == []


def test_strangers_have_so_much_time(clock: Clock) -> None:
    admission = new_admission()
    early, late = stranger(admission, "a")[1], stranger(admission, "b")
    clock.now += 5
    known = stranger(admission, "c")
    admission.identify(known[0], Identity("web"))
    clock.now += 5
    admission.leave(late[0])
    admission.tick()
    clock.now += 100
    admission.tick()

    assert early.done[:1] == ["expire"]
    assert late[1].done == known[1].done == []


def test_how_many_slots_an_identity_may_have() -> None:
    admission = new_admission()
    web, free = Identity("web", connections=2), Identity("free")
    slots = [enter(admission)[0] for _ in range(3)]
    for slot in slots[:2]:
        assert admission.why_not_as(slot, web) is None
        admission.identify(slot, web)

    failure = admission.why_not_as(slots[2], web)
    assert failure
    assert failure.detail == "2 connections of web are open; try again later"
    assert admission.why_not_as(slots[0], web) is None, "it has its slot"
    admission.identify(slots[0], free)
    assert admission.why_not_as(slots[2], web) is None


def test_few_of_those_that_are_turned_away_are_waited_for() -> None:
    admission = new_admission(max_connections=99, address_connections=99)
    slots = [enter(admission)[0] for _ in range(MAX_LEAVING + 1)]

    assert [admission.begin_leaving(slot) for slot in slots] == [True] * MAX_LEAVING + [False]
    admission.leave(slots[0])
    assert admission.begin_leaving(slots[-1])


@pytest.mark.parametrize("what", ["renew", "expire"])
def test_one_that_raises_is_dropped_and_keeps_nothing_from_the_others(
    clock: Clock, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    admission = new_admission()
    holders = [stranger(admission, f"address {number}")[1] for number in range(3)]

    def broken() -> None:
        raise RuntimeError("a defect")

    setattr(holders[1], what, broken)
    clock.now += 100
    (admission.renew if what == "renew" else admission.tick)()

    assert [holder.done for holder in holders] == [[what], ["abort"], [what]]
    assert "a client from address 1 is dropped" in caplog.text


def test_who_had_to_make_room_is_named_in_the_log_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    admission = new_admission(max_connections=99)
    for number in range(9):
        stranger(admission, f"address {number}")

    assert caplog.messages == ["a client from address 0 was dropped before it authenticated, to make room for others"]
    admission._log.close()


def test_all_are_told_of_new_rules() -> None:
    admission = new_admission()
    holders = [enter(admission)[1] for _ in range(3)]
    admission.renew()

    assert [holder.done for holder in holders] == [["renew"]] * 3


@given(st.lists(st.tuples(st.sampled_from(["enter", "stranger", "known", "away", "leave"]), st.integers(0, 5))))
def test_the_counts_are_right_whatever_comes(steps: list[tuple[str, int]]) -> None:
    admission = new_admission(max_connections=10**6, address_connections=10**6)
    slots: list[Slot] = []
    for what, number in steps:
        slot = slots[number % len(slots)] if slots else None
        if what in ("enter", "stranger"):
            made, _ = (stranger if what == "stranger" else enter)(admission, f"address {number}")
            slots.append(made)
        elif slot and what == "known":
            admission.identify(slot, Identity(f"identity {number % 2}"))
        elif slot and what == "away":
            admission.begin_leaving(slot)
        elif slot:
            admission.leave(slot)
        slots = [one for one in slots if one in admission._slots]
        assert sum(admission._origins.values()) == len(admission) == len(slots)
        assert sum(admission._identities.values()) == sum(one.identity is not None for one in slots)
        assert sum(admission._pending_origins.values()) == len(admission._pending) <= CONFIG.max_pending
        assert admission._pending.keys() <= admission._slots.keys()
        assert admission._leaving <= admission._slots.keys()
