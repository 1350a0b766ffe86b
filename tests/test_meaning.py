"""Lines to their meanings, one by one and a turn at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aggregator.event import Event, Events
from aggregator.wire import Code, Rejection, Word, meaning, replies
from aggregator.wire.meaning import Batch, Command, Interpreter, Meaning, interpret
from tests.harness.wire import event

MAX_LINE_BYTES = 1000


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"STATS", Command(Word.STATS, [])),
        (b"stats", Command(Word.STATS, [])),
        (b"  Stats \t", Command(Word.STATS, [])),
        (b"EVENTS a 3 AFTER 7", Command(Word.EVENTS, ["a", "3", "AFTER", "7"])),
        (b"EVENTS\ta", Command(Word.EVENTS, ["a"])),
        (b"event 'a topic' \"an id\"", Command(Word.EVENT, ["a topic", "an id"])),
        (b"EVENT a\\ b ''", Command(Word.EVENT, ["a b", ""])),
        ("EVENTS größe".encode(), Command(Word.EVENTS, ["größe"])),
        (b"QUIT", Command(Word.QUIT, [])),
        (b" QUIT ", Command(Word.QUIT, [])),
    ],
)
def test_a_command(line: bytes, command: Command) -> None:
    assert interpret(line) == command


NOT_AN_EVENT = "not an event: events begin with {, this line with %s; HELP lists commands"


@pytest.mark.parametrize(
    ("line", "code", "detail"),
    [
        (b"EVENTS 'open", Code.BAD_COMMAND, "no closing quotation: quote arguments as in a shell"),
        (b"EVENTS \\", Code.BAD_COMMAND, "no escaped character: quote arguments as in a shell"),
        (b"EVENTS \xff", Code.BAD_COMMAND, "not valid UTF-8 at byte 8"),
        (b"STATS " + b"x" * 5000, Code.BAD_COMMAND, "a command has at most 4096 bytes, this one 5006"),
        # One word alone, in upper case, was meant as a command.
        (b"FOO", Code.BAD_COMMAND, "unknown command FOO; HELP lists them"),
        (b" FOO\t", Code.BAD_COMMAND, "unknown command FOO; HELP lists them"),
        (b"COMMIT", Code.BAD_COMMAND, "unknown command COMMIT; HELP lists them"),
        # Text does not end a stream.
        (b"quit", Code.BAD_COMMAND, "QUIT must stand alone on its line, in upper case"),
        (b"Quit", Code.BAD_COMMAND, "QUIT must stand alone on its line, in upper case"),
        (b"QUIT now", Code.BAD_COMMAND, "QUIT must stand alone on its line, in upper case"),
        (b"quit: the user has left", Code.BAD_LINE, NOT_AN_EVENT % "'q'"),
        (b"Quit by signal 15", Code.BAD_COMMAND, "QUIT must stand alone on its line, in upper case"),
        (b"QUIT ''", Code.BAD_COMMAND, "QUIT must stand alone on its line, in upper case"),
        (b"'QUIT'", Code.BAD_LINE, NOT_AN_EVENT % '"\'"'),
        # Text.
        (b"INFO the server is up", Code.BAD_LINE, NOT_AN_EVENT % "'I'"),
        (b"INFO: up", Code.BAD_LINE, NOT_AN_EVENT % "'I'"),
        (b"INFO:", Code.BAD_LINE, NOT_AN_EVENT % "'I'"),
        (b"info", Code.BAD_LINE, NOT_AN_EVENT % "'i'"),
        (b"Info", Code.BAD_LINE, NOT_AN_EVENT % "'I'"),
        (b"X", Code.BAD_LINE, NOT_AN_EVENT % "'X'"),
        (b"null", Code.BAD_LINE, NOT_AN_EVENT % "'n'"),
        (b"STATS!", Code.BAD_LINE, NOT_AN_EVENT % "'S'"),
        (b"PING\x00", Code.BAD_LINE, NOT_AN_EVENT % "'P'"),
        (b"PING\x0b", Code.BAD_LINE, NOT_AN_EVENT % "'P'"),
        ("PINGé".encode(), Code.BAD_LINE, NOT_AN_EVENT % "'P'"),
        (b"EVENTS_TOTAL 5", Code.BAD_LINE, NOT_AN_EVENT % "'E'"),
        (b"X" * 5000, Code.BAD_LINE, NOT_AN_EVENT % "'X'"),
        (b"x" * 5000, Code.BAD_LINE, NOT_AN_EVENT % "'x'"),
        (b"<13>text", Code.BAD_LINE, NOT_AN_EVENT % "'<'"),
        (b"\x00", Code.BAD_LINE, NOT_AN_EVENT % "byte 0x00"),
        (b"\x1e{}", Code.BAD_LINE, NOT_AN_EVENT % "byte 0x1E"),
        (b"\x0b{}", Code.BAD_LINE, NOT_AN_EVENT % "byte 0x0B"),
        (b"\xff\xfe", Code.BAD_LINE, NOT_AN_EVENT % "byte 0xFF"),
        ("é".encode(), Code.BAD_LINE, NOT_AN_EVENT % "'é'"),
        ("\u202etext".encode(), Code.BAD_LINE, NOT_AN_EVENT % "byte 0xE2"),
        (b'"text"', Code.BAD_LINE, NOT_AN_EVENT % "'\"'"),
        (b"42", Code.BAD_LINE, NOT_AN_EVENT % "'4'"),
        (b'57 {"topic":"t"}', Code.BAD_LINE, NOT_AN_EVENT % "'5'"),
        (b"{", Code.BAD_JSON, "unexpected end of data at character 2"),
        (b"  {", Code.BAD_JSON, "unexpected end of data at character 2"),
    ],
)
def test_a_line_that_is_nothing_is_rejected(line: bytes, code: Code, detail: str) -> None:
    assert interpret(line) == Rejection(code, detail)


@pytest.mark.parametrize("blanks", [b" ", b"\t", b"\r", b" \t\r ", b" " * 500])
def test_the_white_space_of_json_is_skipped(blanks: bytes) -> None:
    assert interpret(blanks) is None
    assert interpret(blanks + PLAIN) == interpret(PLAIN)
    assert interpret(blanks + BATCH_OF_3) == interpret(BATCH_OF_3)


@given(st.binary(min_size=1, max_size=60).filter(lambda line: b"\n" not in line))
def test_every_line_is_something(line: bytes) -> None:
    found = interpret(line)
    assert isinstance(found, Event | list | Command | Rejection) or (found is None and not line.strip(b" \t\r"))


words = st.sampled_from([b"PING", b"quit", b"QUIT", b"Events", b"INFO", b"x", b"{", b"[", b'"'])


@given(words, st.binary(max_size=8).filter(lambda rest: b"\n" not in rest))
def test_only_the_word_alone_ends_a_stream(word: bytes, rest: bytes) -> None:
    found = interpret(word + rest)

    ends = isinstance(found, Command) and found.word is Word.QUIT
    assert ends is ((word + rest).strip(b" \t\r") == b"QUIT")


# --- turns

PLAIN = event("plain")[:-1]
OTHER = event("other", topic="u", payload='{"n":1e400}')[:-1]  # an event, but not a plain one
BATCH_OF_3 = b"[" + PLAIN + b"," + OTHER + b",7]"
BAD = b"%"


def interpreter_with(*lines: bytes | None) -> Interpreter:
    interpreter = Interpreter(MAX_LINE_BYTES, None)
    interpreter.add(lines)
    return interpreter


def turns(interpreter: Interpreter) -> Iterator[list[tuple[int, Meaning]]]:
    """The meanings that each turn yields, each with the line number at that moment, until no line is left."""
    while interpreter.lines:
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

    assert len(interpreter.lines) == 1
    assert interpreter.line_number == meaning.TURN_LINES


def test_the_members_of_batches_count_for_the_turn() -> None:
    large = b"[" + b",".join([b"7"] * meaning.TURN_LINES) + b"]"
    interpreter = interpreter_with(PLAIN, large, PLAIN)
    list(interpreter.turn())

    assert len(interpreter.lines) == 1


@pytest.mark.parametrize(
    ("line", "taken"), [(b" " * 1000, 4), (b"{" + b"x" * 999, 4), (b"x" * 1000, 4), (b"x" * 3999, 2), (b"x" * 9999, 1)]
)
def test_a_turn_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch, line: bytes, taken: int) -> None:
    """A line that is longer takes a turn of its own."""
    monkeypatch.setattr(meaning, "TURN_BYTES", 4000)
    interpreter = interpreter_with(*[line] * 10)
    list(interpreter.turn())

    assert interpreter.line_number == taken


@pytest.mark.parametrize("odd", [PLAIN, OTHER, BAD, b" "])
def test_a_piece_of_plain_events_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch, odd: bytes) -> None:
    monkeypatch.setattr(meaning, "TURN_BYTES", 10 * len(PLAIN))
    interpreter = interpreter_with(*[PLAIN] * 9, odd, *[PLAIN] * 90)
    list(interpreter.turn())

    assert interpreter.line_number in (10, 11)


def test_lines_that_are_dropped_are_not_interpreted() -> None:
    interpreter = interpreter_with(PLAIN, PLAIN)
    interpreter.clear()

    assert not interpreter.lines
    assert list(interpreter.turn()) == []


def test_lines_that_come_during_a_turn_belong_to_it() -> None:
    interpreter = interpreter_with(BAD)
    turn = interpreter.turn()
    next(turn)
    interpreter.add([BAD])

    assert [type(found) for found in turn] == [Rejection]
    assert interpreter.line_number == 2


def cost(found: Event | Batch | Command | Rejection | None) -> int:
    """How much of a turn's budget one line takes."""
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
        while interpreter.lines:
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
            assert not interpreter.lines or sum(map(cost, taken)) >= turn_lines, "and not before"

        assert found_events == [one for one in one_by_one if isinstance(one, Event)]
        assert others == [
            (number, one) for number, one in enumerate(one_by_one, 1) if one is not None and not isinstance(one, Event)
        ]
        assert interpreter.line_number == len(lines)


class Publisher:
    """A client that may publish only to topics that begin with an ``a``."""

    name = "somebody"

    def may_publish(self, topics: Iterable[str]) -> bool:
        return all(topic.startswith("a") for topic in topics)


LINE = st.one_of(
    st.builds(lambda topic, number: event(f"e{number}", topic).strip(), st.sampled_from("ab"), st.integers(0, 99)),
    st.sampled_from([b"", b"PING", b"{", b"x"]),
    st.lists(st.sampled_from("ab"), max_size=4).map(
        lambda topics: b"[" + b",".join(event(f"m{n}", topic).strip() for n, topic in enumerate(topics)) + b"]"
    ),
)


@given(st.lists(LINE, max_size=40))
def test_what_may_not_be_published_is_rejected_and_nothing_else_changes(lines: list[bytes]) -> None:
    def meanings(publisher: Publisher | None) -> list[tuple[int, object]]:
        interpreter = Interpreter(1 << 20, None)
        interpreter.publisher = publisher
        interpreter.add(list(lines))
        found: list[tuple[int, object]] = []
        while interpreter.lines:
            for given_out in interpreter.turn():
                each = list(given_out) if isinstance(given_out, Events) else [given_out]
                found += [(interpreter.line_number, one) for one in each]
        return found

    def judged(one: object) -> object:
        if isinstance(one, Event) and one.topic == "b":
            return Rejection(Code.NOT_ALLOWED, "somebody may not publish to this topic", "b", one.event_id)
        return [judged(member) for member in one] if isinstance(one, list) else one

    free, limited = meanings(None), meanings(Publisher())
    assert [one for _, one in limited] == [judged(one) for _, one in free]
    for number, one in limited:
        if isinstance(one, Rejection) and one.topic == "b":
            assert b'"topic":"b"' in lines[number - 1]
