"""Coverage-guided fuzzing of the protocol without its sockets: bytes in, then lines, their meanings, replies out.

``python -m tests.harness.fuzz_protocol SECONDS [FOLDER]`` searches for SECONDS and exits with 0 if it found nothing;
ten minutes are a good duration. It needs ``pip install -e '.[fuzz]'``. It keeps its corpus in FOLDER, if one is given.
Each input that it finds is a file there, and should become a row of ``FOUND`` in test_fuzz.py.

For any bytes, cut into any pieces, these statements hold:

- the lines are those of a plain split, in order, each at most as long as allowed;
- each line that is not blank has one reply, one line long, that agrees with Python's own JSON parser;
- nothing raises, and no more than one unfinished line is held;
- the way the stream is cut makes no difference.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from aggregator import json_text
from aggregator.event import Event
from aggregator.wire import Rejection, meaning, replies, rules
from aggregator.wire import lines as splitting
from aggregator.wire.lines import BOM, Foreign, LineSplitter
from aggregator.wire.meaning import Command, interpret
from aggregator.wire.replies import Reply
from tests.harness.fuzz import fuzz, pieces
from tests.harness.mutated_lines import BLANKS, SEEDS, TOKENS, fault

LIMIT = 1200
"""The longest line here: long enough to nest past the limit, short enough that over-long lines are found soon."""


def check(data: bytes) -> None:
    """Check one input; its first bytes say how the rest is cut. Raises AssertionError, or whatever a defect raises."""
    head, stream = data[:4], data[4:]
    lines, foreign = _split([stream])
    assert (lines, foreign) == _split(pieces(stream, head))
    if foreign:
        assert lines == []
        return
    assert lines == _plain_split(stream)
    for number, line in enumerate(lines, 1):
        if line is not None and not line.strip(BLANKS):
            continue
        reply = _reply(line, number)
        wrong = fault(b"x" * (LIMIT + 1) if line is None else line, number, reply, LIMIT)
        assert wrong is None, (wrong, line, reply)


def _split(cut: list[bytes]) -> tuple[list[bytes | None], Foreign | None]:
    splitter = LineSplitter(LIMIT)
    lines: list[bytes | None] = []
    for piece in cut:
        lines += splitter.feed(piece)
        held = [value for value in vars(splitter).values() if isinstance(value, bytes | bytearray)]
        assert sum(map(len, held)) <= LIMIT + len(b"\r"), "more than one line is held"
    return lines + splitter.finish(), splitter.foreign


def _plain_split(stream: bytes) -> list[bytes | None]:
    contents = [line.removesuffix(b"\r") for line in stream.split(b"\n")]
    if not stream.rpartition(b"\n")[2]:
        contents.pop()
    lines = [None if len(content) > LIMIT else content for content in contents]
    if lines and lines[0]:
        lines[0] = lines[0].removeprefix(BOM)
    return lines


def _reply(line: bytes | None, number: int) -> Reply:
    """The reply that the connection would send if every event were new, decoded from its bytes."""
    found = replies.too_long(LIMIT) if line is None else interpret(line)
    match found:
        case Event():
            reply = _to_event(found, number)
        case None:
            raise AssertionError("a line is passed over in silence")
        case Rejection():
            reply = replies.rejected(found, number)
        case Command():
            reply = replies.ok({})
        case _:
            reply = replies.batch([_to_event(member, number) for member in found])
    encoded = replies.encode(reply)
    assert encoded.endswith(b"\n"), encoded
    assert encoded.count(b"\n") == 1, encoded
    return json.loads(encoded)  # type: ignore[no-any-return]


def _to_event(member: Event | Rejection, number: int) -> Reply:
    if isinstance(member, Rejection):
        return replies.rejected(member, number)
    assert json.loads(member.json)["event_id"] == member.event_id, "its bytes are an event of their own"
    return replies.stored(member, 1)


def main(seconds: int, folder: Path) -> None:
    modules = (json_text, splitting, meaning, replies, rules)
    names = {b'"topic"', b'"event_id"', b'"timestamp"', b'"source"', b'"payload"'}
    fuzz(seconds, folder, check, modules, [*SEEDS, b"".join(SEEDS), BOM + SEEDS[0]], {*TOKENS, *names})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(int(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else scratch))
