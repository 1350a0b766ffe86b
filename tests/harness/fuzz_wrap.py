"""Coverage-guided fuzzing of the wrap port without its sockets: bytes in, texts, events out.

Run ``python -m tests.harness.fuzz_wrap SECONDS [FOLDER]``, as described in ``fuzz_protocol``. Each input that it finds
should become a row of ``FOUND_ON_THE_WRAP_PORT`` in test_fuzz.py.

For any bytes, cut into any pieces, these statements hold:

- either the stream is reported as not being text, or every byte of it is in a text or stands between texts;
- each text that is not blank becomes events that the rules accept, on one line each, and they hold all of the text;
- nothing raises, and no more than one unfinished text is held;
- the way the stream is cut makes no difference.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from aggregator.event import Event
from aggregator.wire import rules
from aggregator.wire.lines import BOM
from aggregator.wrap import fields, flatted, framing, recognition, scan, stamp, syslog, topic, wrapper
from aggregator.wrap.framing import Framer, Part, Text
from aggregator.wrap.recognition import Foreign, Framing
from aggregator.wrap.topic import TopicTemplate
from aggregator.wrap.wrapper import Defaults, Wrapper
from tests.harness.fuzz import fuzz, pieces
from tests.harness.mutated_lines import SEEDS, TOKENS
from tests.harness.wire import Json

LIMIT = 600
"""The longest text here: long enough to nest past the limit, short enough that texts are cut soon."""

WRAPPED_SEEDS = [
    b'{"level":30,"time":1764313200123,"pid":1,"hostname":"web-1","msg":"hello"}\n',
    b'{"@timestamp":"2026-11-28T10:00:00.000Z","message":"hello","host":"web-1"}\n',
    b'{"a":1}{"b":"}{"}{"c":[{}]}',
    b'[{"a":1},\n{"b":2},\n{"c":3}]',
    b'[{"startTime":"1","data":"2","pid":7},"2026-11-28T10:00:00.000Z",["3",5],"hello"]__LOG4JS__',
    b"<14>hello\0<11>Traceback\n  line\0",
    b'47 <13>1 2026-11-28T10:00:00Z web-1 app 12 ID - hello16 {"message":"hi"}',
    b'<13>1 2026-11-28T10:00:00.123Z web-1 app - - [a@1 b="c\\"d"][e] \xef\xbb\xbfhello\n',
    b"<13>Nov 28 10:00:00 web-1 app[12]: hello\r\n",
    b"Nov 28 10:00:00 web-1 app: hello\n",
    b"2026-11-28 10:00:00,123 INFO caf\xe9 \\ \x1b[0m\n",
]

_GAP = re.compile(rb"\n*[1-9][0-9]{0,8} |__LOG4JS__|\r?\n|\0|\r|")
_BETWEEN_OBJECTS = re.compile(rb"[ \t\r\n,\[\]]*")
_ALL_GAPS = re.compile(rb"(?:[ \t\r\n,\[\]\0]|__LOG4JS__|[0-9]+ )*+")
_UNESCAPE = re.compile(rb"\\(?:\\|x([0-9a-f]{2}))")


def check(data: bytes) -> None:
    """Check one input; its first bytes say how the rest is cut. Raises AssertionError, or whatever a defect raises."""
    head, stream = data[:4], data[4:]
    texts, said = texts_of([stream])
    assert (texts, said) == texts_of(pieces(stream, head))
    if isinstance(said, Foreign):
        assert texts == []
        return
    assert_nothing_is_gone(stream, texts)
    wrap = Wrapper(Defaults(TopicTemplate("logs.{program|app}"), "192.0.2.1", "id"))
    for text in texts:
        assert_is_kept(text, [*wrap.wrap([text])])


def texts_of(stream: Sequence[bytes]) -> tuple[list[Text], Framing | Foreign | None]:
    """All texts of a stream given in pieces, and what kind of stream it was recognized as."""
    framer = Framer(LIMIT)
    texts: list[Text] = []
    for piece in stream:
        texts += framer.feed(piece)
        held = len(framer._cutter.rest if framer._cutter else framer._head)
        assert held <= LIMIT + len(b"__LOG4JS__"), "more than one text is held"
    return texts + framer.finish(), framer.framing or framer.foreign


def assert_nothing_is_gone(stream: bytes, texts: list[Text]) -> None:
    """Assert that each text follows the one before it, with nothing between them but what may stand there."""
    begins = {len(BOM)} if stream.startswith(BOM) else {0}  # where the next text may begin, one for each way to read it
    for text in texts:
        content = text.content if isinstance(text, Part) else text
        begins = {
            start + len(content)
            for begin in begins
            for start in _ends_of_gaps(stream, begin)
            if stream.startswith(content, start)
        }
        assert begins, text
    assert any(_ALL_GAPS.fullmatch(stream, begin) for begin in begins), "the end of the stream is in no text"


def _ends_of_gaps(stream: bytes, begin: int) -> set[int]:
    ends = {begin}
    for start in (begin, *(end for gap in (_GAP.match(stream, begin),) if gap for end in (gap.end(),))):
        ends.add(start)
        for pattern in (_GAP, _BETWEEN_OBJECTS):
            if gap := pattern.match(stream, start):
                ends.add(gap.end())
    return ends


def assert_is_kept(text: Text, events: list[Event]) -> None:
    """Assert that these events of one text hold all that the text held."""
    content = text.content if isinstance(text, Part) else text
    if not content.strip(b" \t\r\n") and not isinstance(text, Part):
        assert events == []
        return
    payloads = []
    for event in events:
        assert b"\n" not in event.json
        found = rules.parse(event.json)
        assert isinstance(found, Event), (found, event.json)
        assert found == event
        payloads.append(json.loads(event.json))
    (first, *others) = payloads
    if isinstance(text, Part):
        assert (first["payload"]["cut"]["offset"], first["payload"]["cut"]["more"]) == (text.offset, text.more)
    stripped = content.strip(b" \t\r\n").replace(b"\n", b" ")
    if events[0].json == stripped or events[0].json.endswith(b',"payload":%b}' % stripped):
        assert not others
    elif "message" in first.get("payload", {}) and not others and _holds(content, first["payload"]):
        pass
    else:
        assert stripped[:1] in b"[{"
        members = json.loads(content, strict=False)
        members = members.get("events", members) if isinstance(members, dict) else members
        assert len(events) == len(members) or "startTime" in str(first) or len(events) == 1


def _holds(content: bytes, payload: Json) -> bool:
    """Whether the message is the whole text, or, for syslog, the end of the text."""
    message = payload["message"].encode()
    if payload.get("escaped"):
        message = _UNESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()) if found[1] else b"\\", message)
    is_syslog = "priority" in payload or "program" in payload
    return content.endswith(message) if is_syslog else content == message


MODULES = (fields, flatted, framing, recognition, rules, scan, stamp, syslog, topic, wrapper)


def main(seconds: int, folder: Path) -> None:
    fuzz(seconds, folder, check, MODULES, [*WRAPPED_SEEDS, *SEEDS], {*TOKENS, b"__LOG4JS__", b"<13>", b"<13>1 ", b"}{"})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(int(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else scratch))
