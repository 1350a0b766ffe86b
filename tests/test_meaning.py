"""Lines to what they mean, one by one and a turn's worth at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aggregator.event import Event, Events
from aggregator.wire import Code, Rejection, meaning, replies
from aggregator.wire.meaning import Batch, Command, Interpreter, Meaning, interpret
from tests.harness.wire import event

MAX_LINE_BYTES = 1000


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"STATS", Command("STATS", [])),
        (b"stats", Command("STATS", [])),
        (b"EVENTS a 3 AFTER 7", Command("EVENTS", ["a", "3", "AFTER", "7"])),
        (b"event 'a topic' \"an id\"", Command("EVENT", ["a topic", "an id"])),
        (b"EVENT a\\ b ''", Command("EVENT", ["a b", ""])),
        ("EVENTS größe".encode(), Command("EVENTS", ["größe"])),
    ],
)
def test_a_letter_starts_a_command(line: bytes, command: Command) -> None:
    assert interpret(line) == command


@pytest.mark.parametrize(
    ("line", "code", "detail"),
    [
        (b"EVENTS 'open", Code.BAD_COMMAND, "no closing quotation: quote arguments as in a shell"),
        (b"EVENTS \\", Code.BAD_COMMAND, "no escaped character: quote arguments as in a shell"),
        (b"EVENTS \xff", Code.BAD_COMMAND, "not valid UTF-8 at byte 8"),
        (b"x" * 5000, Code.BAD_COMMAND, "a command has at most 4096 bytes, this one 5000"),
        (b"<13>text", Code.BAD_LINE, "expected {, [ or a command, got '<'"),
        (b' {"topic":"t"}', Code.BAD_LINE, "expected {, [ or a command, got ' '"),
        (b"\x00", Code.BAD_LINE, "expected {, [ or a command, got byte 0x00"),
        (b"\xff\xfe", Code.BAD_LINE, "expected {, [ or a command, got byte 0xFF"),
        ("é".encode(), Code.BAD_LINE, "expected {, [ or a command, got 'é'"),
        (b'"text"', Code.BAD_LINE, "expected {, [ or a command, got '\"'"),
        (b"42", Code.BAD_LINE, "expected {, [ or a command, got '4'"),
        (b"{", Code.BAD_JSON, "unexpected end of data at character 2"),
    ],
)
def test_a_line_that_is_nothing_is_rejected(line: bytes, code: Code, detail: str) -> None:
    assert interpret(line) == Rejection(code, detail)


@given(st.binary(min_size=1, max_size=60).filter(lambda line: b"\n" not in line))
def test_every_line_is_something(line: bytes) -> None:
    assert isinstance(interpret(line), Event | list | Command | Rejection)


# --- turns

PLAIN = event("plain")[:-1]
OTHER = event("other", topic="u", payload='{"n":1e400}')[:-1]  # an event, but not a plain one
BATCH_OF_3 = b"[" + PLAIN + b"," + OTHER + b",7]"
BAD = b"%"


def interpreter_with(*lines: bytes | None) -> Interpreter:
    interpreter = Interpreter(MAX_LINE_BYTES)
    interpreter.add(lines)
    return interpreter


def turns(interpreter: Interpreter) -> Iterator[list[tuple[int, Meaning]]]:
    """What each turn gives out, with the line number at that moment, until no line is left."""
    while interpreter:
        yield [(interpreter.line_number, found) for found in interpreter.turn()]


def ids(found: Meaning) -> list[str]:
    assert isinstance(found, Events)
    return found.event_ids


def test_events_of_lines_in_a_row_come_together_and_anything_else_by_itself() -> None:
    interpreter = interpreter_with(PLAIN, OTHER, BAD, PLAIN, b"", PLAIN, BATCH_OF_3, None, OTHER)
    (turn,) = turns(interpreter)
    kinds = [ids(found) if isinstance(found, Events) else type(found) for _, found in turn]

    assert kinds == [["plain", "other"], Rejection, ["plain", "plain"], list, Rejection, ["other"]]
    assert [number for number, found in turn if not isinstance(found, Events)] == [3, 7, 8]
    assert turn[-2][1] == replies.too_long(MAX_LINE_BYTES)
    assert interpreter.line_number == 9


def test_an_empty_line_means_nothing_and_is_counted() -> None:
    (turn,) = turns(interpreter_with(b"", b"", BAD, b""))

    assert [(number, type(found)) for number, found in turn] == [(3, Rejection)]


def test_a_command_ends_the_turn() -> None:
    first, second = turns(interpreter_with(PLAIN, b"PING", BAD, PLAIN))

    assert [type(found) for _, found in first] == [Events, Command]
    assert [(number, type(found)) for number, found in second] == [(3, Rejection), (4, Events)]


def test_a_line_that_looks_like_a_command_and_is_none_ends_no_turn() -> None:
    (turn,) = turns(interpreter_with(b"EVENTS 'open", PLAIN))

    assert [type(found) for _, found in turn] == [Rejection, Events]


@pytest.mark.parametrize("line", [PLAIN, OTHER, BAD, b"", None])
def test_a_turn_is_bounded_in_lines(line: bytes | None) -> None:
    interpreter = interpreter_with(*[line] * (meaning.TURN_LINES + 1))
    list(interpreter.turn())

    assert len(interpreter) == 1
    assert interpreter.line_number == meaning.TURN_LINES


def test_the_members_of_batches_count_for_the_turn() -> None:
    large = b"[" + b",".join([b"7"] * meaning.TURN_LINES) + b"]"
    interpreter = interpreter_with(PLAIN, large, PLAIN)
    list(interpreter.turn())

    assert len(interpreter) == 1


def test_lines_that_are_dropped_are_not_interpreted() -> None:
    interpreter = interpreter_with(PLAIN, PLAIN)
    interpreter.clear()

    assert not interpreter
    assert list(interpreter.turn()) == []


def test_lines_that_come_during_a_turn_belong_to_it() -> None:
    interpreter = interpreter_with(BAD)
    turn = interpreter.turn()
    next(turn)
    interpreter.add([BAD])

    assert [type(found) for found in turn] == [Rejection]
    assert interpreter.line_number == 2


def cost(found: Event | Batch | Command | Rejection | None) -> int:
    """What one line takes of a turn's budget."""
    if isinstance(found, Command):
        return meaning.TURN_LINES
    return 1 + len(found) if isinstance(found, list) else 1


some_lines = st.lists(
    st.tuples(
        st.sampled_from([PLAIN, OTHER, BAD, BATCH_OF_3, b"[]", b"PING", b"EVENTS 'open", b"", None]), st.integers(1, 12)
    ),
    max_size=8,
).map(lambda runs: [line for line, count in runs for _ in range(count)])


@settings(max_examples=500)
@given(lines=some_lines, turn_lines=st.integers(1, 12), piece=st.integers(1, 6), fewest=st.integers(1, 4))
@example([PLAIN] * 7 + [OTHER] + [PLAIN] * 7, 12, 4, 2)
def test_turns_and_pieces_change_nothing_about_what_lines_mean(
    lines: list[bytes | None], turn_lines: int, piece: int, fewest: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meaning, "TURN_LINES", turn_lines)
        patch.setattr(meaning, "PIECE_LINES", piece)
        patch.setattr(meaning, "FEWEST_PIECE_LINES", fewest)
        one_by_one = [
            None if line == b"" else interpret(line) if line else replies.too_long(MAX_LINE_BYTES) for line in lines
        ]
        interpreter = interpreter_with(*lines)
        found_events: list[Event] = []
        others: list[tuple[int, Meaning]] = []
        while interpreter:
            first = interpreter.line_number
            for found in interpreter.turn():
                if isinstance(found, Events):
                    assert len(found), "events are given out only if there are any"
                    found_events += found
                else:
                    others.append((interpreter.line_number, found))
            taken = one_by_one[first : interpreter.line_number]
            assert taken, "each turn takes at least one line"
            assert sum(map(cost, taken[:-1])) < turn_lines, "a turn ends when its budget is used up"
            assert not interpreter or sum(map(cost, taken)) >= turn_lines, "and not before"

        assert found_events == [one for one in one_by_one if isinstance(one, Event)]
        assert others == [
            (number, one) for number, one in enumerate(one_by_one, 1) if one is not None and not isinstance(one, Event)
        ]
        assert interpreter.line_number == len(lines)
