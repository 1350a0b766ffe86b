"""Good lines with random changes, and a check of the reply to each that does not use the server's code."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator

from tests.harness.wire import Json, event


def outcome(reply: Json) -> str:
    return str(reply.get("code") or reply["status"])


BLANKS = b" \t\r"

SEEDS = [
    event("s"),
    event("s", payload='{"n":18446744073709551616,"s":"\\"[{"}'),
    event("s", payload='{"user":"ann","n":1.10,"deep":[[{"x":null}],true,-0.0,1e5]}', level="30"),
    event("s", topic="caf\u00e9 \U0001f642", payload="{}"),
    b"[" + event("a")[:-1] + b"," + event("b", payload='{"s":"\\u00e9\\ud83d\\ude42"}')[:-1] + b"]\n",
    b'{"events":[' + event("c")[:-1] + b"]}\n",
    b"EVENTS 'a topic' 10 AFTER 7\n",
    b"EVENT t s\n",
    b"PING\n",
    b"TOPICS\n",
    event("s", payload='{"m":"cut \\ud83d"}'),
    b"INFO the server is up\n",
]
TOKENS = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\\u0000", b"\\ud800", b"\\udc00", b"\x00", b"\xff",
    b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b"\n\n", b"1e999", b"-", b"18446744073709551616", b"null", b"NaN", b"'",
    b" ", b"\t", b"[" * 300, b'"topic":"t",', b'"events":[', b"GET / HTTP/1.1", b"x" * 3000,
]  # fmt: skip


def mutated(random_: random.Random, serial: int) -> bytes:
    """A good line with random changes. Its event ids are unique, so that the test knows what is stored."""
    line = bytearray(random_.choice(SEEDS).replace(b'"s"', b'"s%d"' % serial))
    for _ in range(random_.choice((0, 1, 1, 1, 2, 3, 8))):
        at = random_.randrange(len(line) + 1)
        match random_.randrange(5):
            case 0:
                line[at : at + 1] = bytes([random_.randrange(256)])
            case 1:
                del line[at : at + random_.choice((1, 1, 2, 10, 50))]
            case 2:
                line[at:at] = random_.choice(TOKENS)
            case 3:
                line[at:at] = line[at : at + random_.choice((1, 5, 40))]
            case _:
                other = random_.choice(SEEDS)
                line[at:] = other[random_.randrange(len(other)) :]
    return bytes(line.removesuffix(b"\n")) + b"\n"


def answered_lines(stream: bytes, limit: int) -> Iterator[tuple[int, bytes]]:
    """The lines of a stream that must be answered, with their numbers, found without the server's splitter."""
    for number, line in enumerate(stream.split(b"\n")[:-1], 1):
        content = line.removesuffix(b"\r")
        if content.strip(BLANKS) or len(content) > limit:
            yield number, content[: limit + 1]


def said_of_json(line: bytes) -> object:
    """The value that Python's own parser reads from a line; None if the parser rejects it."""
    try:
        return json.loads(line.decode(), parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None


# Where Python's parser accepts more than JSON allows.
LENIENT = re.compile(rb"NaN|Infinity")

WORDS = {b"PING", b"HELP", b"STATS", b"HEALTH", b"TOPICS", b"EVENTS", b"EVENT", b"QUIT"}


def is_command(line: bytes) -> bool:
    """Whether a line begins with the word of a command, or is one word that was meant as a command."""
    first = re.split(rb"[ \t\r]", line, maxsplit=1)[0]
    return first.upper() in WORDS or re.fullmatch(rb"[A-Z]{2,20}[ \t\r]*", line) is not None


def fault(line: bytes, number: int, reply: Json, limit: int) -> str | None:
    """What is wrong with this reply to this line; None if nothing is."""
    kind = outcome(reply)
    size = len(line)
    line = line.lstrip(BLANKS)
    if "line" in reply and reply["line"] != number:
        return "the wrong line"
    if size > limit:
        return None if kind == "too_long" else "an over-long line was read"
    value = said_of_json(line) if line[:1] in (b"{", b"[") else None
    match kind:
        case "stored" | "duplicate":
            good = isinstance(value, dict) and (value["topic"], value["event_id"]) == (
                reply["topic"],
                reply["event_id"],
            )
        case "batch":
            good = isinstance(value, list) or (isinstance(value, dict) and "events" in value)
        case "bad_event":
            good = value is not None
        case "bad_json":
            good = line[:1] in (b"{", b"[") and (value is None or LENIENT.search(line) is not None)
        case "too_deep":
            good = line.count(b"[") + line.count(b"{") > 250
        case "ok" | "bad_command":
            good = is_command(line)
        case "bad_line":
            good = not is_command(line) and line[:1] not in (b"{", b"[")
        case _:
            good = False
    return None if good else "not what this line deserves"
